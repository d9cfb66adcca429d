//! The app behind the guard. What it does with a callback is asked for by `?mode=` in the callback's target, so that attackers may
//! ask too. It goes before the guard, so that a slow answer is never its own doing.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::thread;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use crate::priority;
use crate::support::app::ALLOW;

/// The `errCode` of its usual answer.
pub(crate) const DENIED: &str = "5001";

/// The app; its thread ends when it is dropped.
pub(crate) struct Toy {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Toy {
    /// Starts it with these whole answers beside its own modes: `ok` denies and says in `errMsg` which operation it denied; `allow`
    /// allows; `silent` says nothing.
    pub(crate) fn start(answers: impl IntoIterator<Item = (&'static str, Bytes)>) -> Toy {
        let answers: HashMap<&'static str, Bytes> = answers.into_iter().collect();
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        socket.bind(&any.into()).expect("a free port");
        socket.listen(4096).expect("a socket");
        socket.set_nonblocking(true).expect("a socket");
        let listener = std::net::TcpListener::from(socket);
        let address = listener.local_addr().expect("bound");
        let (stop, stopped) = oneshot::channel::<()>();
        let work = move || {
            let _ = priority::first_in(priority::APP);
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let serve = async move {
                let listener = TcpListener::from_std(listener).expect("a socket");
                let answers = Rc::new(answers);
                loop {
                    // Out of descriptors, say, which passes.
                    let Ok((stream, _)) = listener.accept().await else {
                        tokio::task::yield_now().await;
                        continue;
                    };
                    let answers = Rc::clone(&answers);
                    tokio::task::spawn_local(async move {
                        let _ = serve(stream, &answers).await;
                    });
                }
            };
            LocalSet::new().block_on(&runtime, async {
                tokio::select! {
                    () = serve => {}
                    _ = stopped => {}
                }
            });
        };
        let thread = thread::Builder::new().name("app".to_owned()).spawn(work).expect("a thread");
        Toy { address, stop: Some(stop), thread: Some(thread) }
    }

    /// What `--upstream` takes.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Toy {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A whole answer with status 200.
pub(crate) fn answer(body: impl AsRef<[u8]>, more: &str) -> Bytes {
    let body = body.as_ref();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{more}Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat().into()
}

async fn serve(mut stream: TcpStream, answers: &HashMap<&'static str, Bytes>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = BytesMut::new();
    let allow = answer(ALLOW, "");
    loop {
        let Some(head) = read_head(&mut stream, &mut buffer).await? else { return Ok(()) };
        let line = head.lines().next().unwrap_or_default();
        let mode = line.split_once("mode=").map_or("allow", |(_, rest)| {
            rest.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-')
                .next()
                .unwrap_or_default()
        });
        let fields = || head.lines().skip(1).filter_map(|line| line.split_once(':'));
        let value = |name: &str| {
            fields()
                .find(|(found, _)| found.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.trim().to_owned())
        };
        let mut length: usize = value("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        while length > 0 {
            if buffer.is_empty() && stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
            let part = length.min(buffer.len());
            buffer.advance(part);
            length -= part;
        }
        match mode {
            "ok" => {
                let operation = value("operationid").unwrap_or_default();
                let body = format!(
                    r#"{{"actionCode":0,"errCode":{DENIED},"errMsg":"{operation}","errDlt":"","nextCode":1}}"#
                );
                stream.write_all(&answer(body, "")).await?;
            }
            "silent" => {
                while stream.read_buf(&mut buffer).await? > 0 {
                    buffer.clear();
                }
                return Ok(());
            }
            other => stream.write_all(answers.get(other).unwrap_or(&allow)).await?,
        }
    }
}

/// The head of a request with its last empty line; `None` at the end of the connection.
async fn read_head(stream: &mut TcpStream, buffer: &mut BytesMut) -> io::Result<Option<String>> {
    loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            return Ok(Some(String::from_utf8_lossy(&buffer.split_to(at + 4)).into_owned()));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}
