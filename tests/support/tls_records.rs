//! A client's TLS records by hand: part of a handshake message, empty ones, and new keys.

use std::io::{self, Read as _, Write as _};
use std::sync::Arc;

use rustls::crypto::cipher::{AeadKey, MessageEncrypter, OutboundChunks, OutboundPlainMessage};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ConnectionTrafficSecrets, ContentType, ProtocolVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Most content of a record.
const RECORD: usize = 16_000;

/// A configuration for [`Records`].
pub(crate) fn config(from: &ClientConfig) -> Arc<ClientConfig> {
    let mut config = from.clone();
    config.enable_secret_extraction = true;
    Arc::new(config)
}

/// A connection whose handshake is done, and whose records are made by hand.
pub(crate) struct Records {
    pub(crate) stream: TcpStream,
    encrypter: Box<dyn MessageEncrypter>,
    number: u64,
}

/// Does the handshake of TLS 1.3 with this configuration over a connection.
pub(crate) async fn handshake(
    stream: &mut TcpStream,
    config: Arc<ClientConfig>,
) -> io::Result<ClientConnection> {
    let name = ServerName::try_from("localhost").expect("a name");
    let mut client = ClientConnection::new(config, name).map_err(io::Error::other)?;
    let mut buffer = vec![0; 16 << 10];
    loop {
        let mut out = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut out)?;
        }
        stream.write_all(&out).await?;
        if !client.is_handshaking() {
            return Ok(client);
        }
        let count = stream.read(&mut buffer).await?;
        let mut read = &buffer[..count];
        while !read.is_empty() {
            client.read_tls(&mut read)?;
            client.process_new_packets().map_err(io::Error::other)?;
        }
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

impl Records {
    /// Does the handshake; the configuration is made by [`config`].
    pub(crate) async fn over(mut stream: TcpStream, config: Arc<ClientConfig>) -> io::Result<Records> {
        let client = handshake(&mut stream, config).await?;
        let suite = client.negotiated_cipher_suite().and_then(|suite| suite.tls13()).expect("TLS 1.3");
        let secrets = client.dangerous_extract_secrets().map_err(io::Error::other)?;
        let (number, secret) = secrets.tx;
        let (key, iv) = match secret {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv }
            | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
            | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (key, iv),
            _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        let key: [u8; 32] = key.as_ref().try_into().expect("the first suite has keys of 32 bytes");
        let encrypter = suite.aead_alg.encrypter(AeadKey::from(key), iv);
        Ok(Records { stream, encrypter, number })
    }

    /// A record of this type.
    pub(crate) fn record(&mut self, typ: ContentType, content: &[u8]) -> Vec<u8> {
        let message = OutboundPlainMessage {
            typ,
            version: ProtocolVersion::TLSv1_2,
            payload: OutboundChunks::Single(content),
        };
        let record = self.encrypter.encrypt(message, self.number).expect("it is encrypted").encode();
        self.number += 1;
        record
    }

    /// A handshake message that announces 64 KiB, so many bytes of it.
    pub(crate) fn half_message(&mut self, bytes: usize) -> Vec<u8> {
        let message = half_message(24, bytes);
        message.chunks(RECORD).flat_map(|part| self.record(ContentType::Handshake, part)).collect()
    }

    /// Bytes of the connection above TLS.
    pub(crate) fn data(&mut self, content: &[u8]) -> Vec<u8> {
        content.chunks(RECORD).flat_map(|part| self.record(ContentType::ApplicationData, part)).collect()
    }
}

fn half_message(typ: u8, bytes: usize) -> Vec<u8> {
    [&[typ, 0, 0xff, 0xf0][..], &vec![0; bytes]].concat()
}

/// The first flight of a client, and behind it half a message of so many bytes in plain records, as TLS 1.2 has them before its keys.
pub(crate) async fn half_handshake(
    stream: &mut TcpStream,
    config: Arc<ClientConfig>,
    bytes: usize,
) -> io::Result<()> {
    let name = ServerName::try_from("localhost").expect("a name");
    let mut client = ClientConnection::new(config, name).map_err(io::Error::other)?;
    let mut hello = Vec::new();
    client.write_tls(&mut hello)?;
    stream.write_all(&hello).await?;
    // The end of the server's flight: ServerHelloDone.
    let (mut seen, mut buffer) = (Vec::new(), vec![0; 16 << 10]);
    while !seen.ends_with(&[14, 0, 0, 0]) {
        let count = stream.read(&mut buffer).await?;
        seen.extend_from_slice(&buffer[..count]);
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    // A ClientKeyExchange.
    let message = half_message(16, bytes);
    let record = |part: &[u8]| [&[22, 3, 3][..], &(part.len() as u16).to_be_bytes(), part].concat();
    stream.write_all(&message.chunks(RECORD).flat_map(record).collect::<Vec<_>>()).await
}

/// Records with new keys, 31 at a time, and one byte of data behind them: a head that does not come to its end.
pub(crate) fn new_keys(client: &mut ClientConnection, times: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..times {
        for _ in 0..31 {
            client.refresh_traffic_keys().expect("a connection of TLS 1.3");
            while client.wants_write() {
                client.write_tls(&mut out).expect("room");
            }
        }
        client.writer().write_all(b"x").expect("room");
        while client.wants_write() {
            client.write_tls(&mut out).expect("room");
        }
    }
    out
}
