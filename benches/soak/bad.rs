//! Bad callers: one after another does one of the things that callers must not do, at random, and is gone again. They come from
//! 127.0.0.2, to the guard another caller than the good ones.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{interval, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::frames::{self, END_HEADERS, HEADERS, INITIAL_WINDOW, PING, RESET, frame, settings};
use crate::support::{self, COMMAND};

/// Between two bad callers.
const PACE: Duration = Duration::from_millis(25);

/// How long one stays when it has done it.
const STAY: Duration = Duration::from_secs(1);

/// What bad callers do.
const DEEDS: [&str; 10] = [
    "garbage instead of TLS",
    "a handshake cut off",
    "an idle connection",
    "half a head",
    "half a body",
    "a head too large",
    "a body that is no callback",
    "an answer not read",
    "callbacks reset",
    "frames without callbacks",
];

/// The callers at work.
pub(crate) struct Bad {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<BTreeMap<&'static str, u64>>,
}

impl Bad {
    /// Starts them, with the configurations for HTTP/1.1 and HTTP/2.
    pub(crate) fn start(address: SocketAddr, configs: [Arc<ClientConfig>; 2]) -> Bad {
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            LocalSet::new().block_on(&runtime, run(address, configs, &stopped))
        });
        Bad { stop, thread }
    }

    /// Ends them; how many did what.
    pub(crate) fn stop(self) -> BTreeMap<&'static str, u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

async fn run(
    address: SocketAddr,
    configs: [Arc<ClientConfig>; 2],
    stop: &AtomicBool,
) -> BTreeMap<&'static str, u64> {
    let (mut done, mut at_work) = (BTreeMap::new(), JoinSet::new());
    let mut ticks = interval(PACE);
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        while at_work.try_join_next().is_some() {}
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let deed = DEEDS[(state % DEEDS.len() as u64) as usize];
        *done.entry(deed).or_default() += 1;
        let configs = configs.clone();
        at_work.spawn_local(async move {
            // That the guard ends it is as it should be.
            let _ = timeout(STAY * 5, act(deed, address, configs)).await;
        });
    }
    at_work.shutdown().await;
    done
}

async fn act(deed: &str, address: SocketAddr, [h1, h2]: [Arc<ClientConfig>; 2]) -> io::Result<()> {
    let head = |length: usize| {
        format!(
            "POST /{COMMAND} HTTP/1.1\r\nHost: x\r\noperationID: 1\r\nscript: healthy\r\nContent-Length: {length}\r\n"
        )
    };
    match deed {
        "garbage instead of TLS" => tcp(address).await?.write_all(&[0x99; 20]).await?,
        "a handshake cut off" => {
            // A record's head, and nothing of the record.
            let mut stream = tcp(address).await?;
            stream.write_all(&[22, 3, 1, 1, 0]).await?;
            tokio::time::sleep(STAY).await;
        }
        "callbacks reset" | "frames without callbacks" => {
            let mut stream = tls(address, h2).await?;
            stream.write_all(&[frames::PREFACE, &settings(&[(INITIAL_WINDOW, 1 << 16)])].concat()).await?;
            let frames: Vec<u8> = if deed == "callbacks reset" {
                let target = format!("/{COMMAND}");
                let stream = |number: u32| {
                    let head = frame(HEADERS, END_HEADERS, number, &frames::callback_fields(&target));
                    [head, frame(RESET, 0, number, &[0, 0, 0, 8])].concat()
                };
                (0..10).flat_map(|number| stream(2 * number + 1)).collect()
            } else {
                frame(PING, 0, 0, &[7; 8]).repeat(500)
            };
            stream.write_all(&frames).await?;
            tokio::time::sleep(STAY).await;
        }
        _ => {
            let mut stream = tls(address, h1).await?;
            let bytes = match deed {
                "half a head" => head(10)[..60].to_owned(),
                "half a body" => head(1_000) + "\r\n{\"callbackCommand\":",
                "a head too large" => head(2) + "x: " + &"y".repeat(200 << 10) + "\r\n\r\n{}",
                "a body that is no callback" => head(2) + "\r\n[]",
                "an answer not read" => {
                    let body = support::SAMPLE.trim_end();
                    (head(body.len()) + "\r\n" + body).repeat(20)
                }
                _ => String::new(),
            };
            stream.write_all(bytes.as_bytes()).await?;
            stream.flush().await?;
            tokio::time::sleep(STAY).await;
        }
    }
    Ok(())
}

async fn tcp(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 0, 2], 0)))?;
    socket.connect(address).await
}

async fn tls(address: SocketAddr, config: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    TlsConnector::from(config).connect(support::server_name(), tcp(address).await?).await
}
