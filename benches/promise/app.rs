//! The scripted app: what it does with a callback is written in the callback's own header `script`.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::support;

/// Length of a healthy answer.
pub(crate) const ANSWER_BYTES: usize = 383;

/// A listening app; it ends with the runtime.
pub(crate) struct App {
    address: SocketAddr,
    shared: Rc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// The senders of callbacks that are left waiting for ever.
    silent: RefCell<Vec<String>>,
    changed: Notify,
}

impl App {
    /// Starts it on the runtime of the caller.
    pub(crate) async fn start() -> io::Result<App> {
        App::start_at(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// Starts it at this address.
    pub(crate) async fn start_at(address: SocketAddr) -> io::Result<App> {
        let listener = TcpListener::bind(address).await?;
        let (address, shared) = (listener.local_addr()?, Rc::new(Shared::default()));
        let serving = Rc::clone(&shared);
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Rc::clone(&serving);
                tokio::task::spawn_local(async move {
                    // An error is the guard closing a connection whose time was over.
                    let _ = shared.serve(stream).await;
                });
            }
        });
        Ok(App { address, shared })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until a callback of this sender is left waiting.
    pub(crate) async fn asked(&self, sender: &str) {
        let needle = format!(r#""sendID":"{sender}""#);
        while !self.shared.silent.borrow().iter().any(|body| body.contains(&needle)) {
            self.shared.changed.notified().await;
        }
    }
}

impl Shared {
    async fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let healthy = response("200 OK", &support::allow_answer(ANSWER_BYTES));
        let mut bytes = Vec::new();
        loop {
            let Some((head, body)) = request(&mut stream, &mut bytes).await? else { return Ok(()) };
            let script = header(&head, "script").unwrap_or_default();
            let (kind, wait) = script.split_once('-').unwrap_or((script, "0"));
            let wait = Duration::from_millis(wait.parse().unwrap_or(0));
            match kind {
                "healthy" | "late" => {
                    if !wait.is_zero() {
                        tokio::time::sleep(wait).await;
                    }
                    stream.write_all(&healthy).await?;
                }
                "half" => {
                    stream.write_all(&healthy[..healthy.len() - ANSWER_BYTES / 2]).await?;
                    return gone(stream).await;
                }
                "broken" => return stream.write_all(&healthy[..healthy.len() - 1]).await,
                "status" => stream.write_all(&response("502 Bad Gateway", "<html>")).await?,
                "invalid" => stream.write_all(&response("200 OK", r#"{"actionCode":"#)).await?,
                "refused" => {
                    stream.write_all(&response("200 OK", r#"{"actionCode":1,"nextCode":0}"#)).await?;
                }
                _ => {
                    if !body.contains("wait-") {
                        self.silent.borrow_mut().push(body);
                        self.changed.notify_one();
                    }
                    return gone(stream).await;
                }
            }
        }
    }
}

/// Waits for the guard to give up.
async fn gone(mut stream: TcpStream) -> io::Result<()> {
    let mut rest = [0; 64];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

fn response(status: &str, body: &str) -> Vec<u8> {
    let head = "Content-Type: application/json\r\nContent-Length:";
    format!("HTTP/1.1 {status}\r\n{head} {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// Reads one request: its head and its body.
async fn request(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> io::Result<Option<(String, String)>> {
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let length: usize =
                header(&head, "content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
            if bytes.len() >= end + 4 + length {
                let body = String::from_utf8_lossy(&bytes[end + 4..end + 4 + length]).into_owned();
                bytes.drain(..end + 4 + length);
                return Ok(Some((head, body)));
            }
        }
        if stream.read_buf(bytes).await? == 0 {
            return Ok(None);
        }
    }
}

fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    let mut fields = head.lines().filter_map(|line| line.split_once(':'));
    fields.find_map(|(key, value)| key.eq_ignore_ascii_case(name).then(|| value.trim()))
}
