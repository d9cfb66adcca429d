//! A scripted app: for each request it gets it does what the test says, byte by byte.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use super::within;

/// One thing an app does with a connection.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Writes bytes.
    Send(Bytes),
    /// Waits until a request has begun.
    Begin,
    /// Waits until the test opens the gate, or the guard closes the connection.
    Wait(Gate),
    /// Takes its time, as an app does that has work to do.
    Work(Duration),
    /// Says nothing until the guard closes the connection.
    Silence,
    /// Says nothing, reads nothing, and stays until the test ends.
    Deafness,
    /// Closes the connection.
    Close,
    /// Resets the connection.
    Reset,
}

/// Opened by the test, waited for by the app.
#[derive(Clone, Debug)]
pub(crate) struct Gate(Arc<watch::Sender<bool>>);

impl Gate {
    pub(crate) fn closed() -> Gate {
        Gate(Arc::new(watch::Sender::new(false)))
    }

    pub(crate) fn open(&self) {
        self.0.send_replace(true);
    }

    pub(crate) fn is_open(&self) -> bool {
        *self.0.borrow()
    }

    async fn opened(&self) {
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }
}

/// A request as the app got it.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Which request of all it is, from 0.
    pub(crate) number: usize,
    /// Which connection it came on, from 0.
    pub(crate) connection: usize,
    /// The head with its last empty line.
    pub(crate) head: String,
    /// The body.
    pub(crate) body: Bytes,
}

impl Asked {
    /// The request line.
    pub(crate) fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    /// The target of the request line.
    pub(crate) fn target(&self) -> &str {
        self.line().split(' ').nth(1).unwrap_or_default()
    }

    /// All values of a header, its name in any case.
    pub(crate) fn values(&self, name: &str) -> Vec<&str> {
        let fields = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        fields.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
    }

    /// The command that the body names.
    pub(crate) fn command(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body["callbackCommand"].as_str().unwrap_or_default().to_owned()
    }
}

/// The app. Its thread ends when it is dropped; a panic in it fails the test.
pub(crate) struct App {
    place: Place,
    asked: Arc<Mutex<Vec<Asked>>>,
    counts: watch::Receiver<Counts>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Clone, Debug)]
enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    connections: usize,
    asked: usize,
    /// Connections that the guard closed, not the app.
    hung_up: usize,
    /// Connections that either side closed.
    ended: usize,
}

struct State<S> {
    script: S,
    greeting: Vec<Act>,
    asked: Arc<Mutex<Vec<Asked>>>,
    counts: watch::Sender<Counts>,
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl App {
    /// An app that answers each request as the script says; with no [`Act::Close`] the connection stays open.
    pub(crate) fn start(script: impl Fn(&Asked) -> Vec<Act> + Send + Sync + 'static) -> App {
        App::start_at("127.0.0.1:0".parse().expect("an address"), script)
    }

    /// An app at this address, as one that was away and comes back.
    pub(crate) fn start_at(
        address: SocketAddr,
        script: impl Fn(&Asked) -> Vec<Act> + Send + Sync + 'static,
    ) -> App {
        let listener = std::net::TcpListener::bind(address).expect("a free port");
        let place = Place::Tcp(listener.local_addr().expect("bound"));
        let bind = move || {
            listener.set_nonblocking(true).expect("a socket");
            Listener::Tcp(TcpListener::from_std(listener).expect("a socket"))
        };
        App::run(place, bind, Vec::new(), script)
    }

    /// An app on a unix socket.
    pub(crate) fn on_unix(path: PathBuf, script: impl Fn(&Asked) -> Vec<Act> + Send + Sync + 'static) -> App {
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("a free path");
        let bind = move || {
            listener.set_nonblocking(true).expect("a socket");
            Listener::Unix(UnixListener::from_std(listener).expect("a socket"))
        };
        App::run(Place::Unix(path), bind, Vec::new(), script)
    }

    /// An app that does this with each connection before it reads anything, and gives every request the same answer.
    pub(crate) fn greeting(greeting: Vec<Act>) -> App {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let place = Place::Tcp(listener.local_addr().expect("bound"));
        let bind = move || {
            listener.set_nonblocking(true).expect("a socket");
            Listener::Tcp(TcpListener::from_std(listener).expect("a socket"))
        };
        App::run(place, bind, greeting, |_| vec![Act::json(ALLOW)])
    }

    /// An app that gives every request the same answer, with status 200.
    pub(crate) fn answering(body: impl Into<Bytes>) -> App {
        let answer = Act::json(body.into());
        App::start(move |_| vec![answer.clone()])
    }

    /// An app that allows everything.
    pub(crate) fn allowing() -> App {
        App::answering(ALLOW)
    }

    fn run<S>(
        place: Place,
        bind: impl FnOnce() -> Listener + Send + 'static,
        greeting: Vec<Act>,
        script: S,
    ) -> App
    where
        S: Fn(&Asked) -> Vec<Act> + Send + Sync + 'static,
    {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (sender, counts) = watch::channel(Counts::default());
        let state = Arc::new(State { script, greeting, asked: Arc::clone(&asked), counts: sender });
        let (stop, stopped) = oneshot::channel();
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async { state.serve(bind(), stopped).await });
        };
        let thread = thread::Builder::new().name("app".to_owned()).spawn(work).expect("a thread");
        App { place, asked, counts, stop: Some(stop), thread: Some(thread) }
    }

    /// What `--upstream` takes.
    pub(crate) fn url(&self) -> String {
        match &self.place {
            Place::Tcp(address) => format!("http://{address}"),
            Place::Unix(path) => format!("unix:{}", path.display()),
        }
    }

    /// Every request so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many connections there have been.
    pub(crate) fn connections(&self) -> usize {
        self.counts.borrow().connections
    }

    /// How many connections the guard has closed.
    pub(crate) fn hung_up(&self) -> usize {
        self.counts.borrow().hung_up
    }

    /// Waits until so many requests have come.
    pub(crate) async fn wait_for_asked(&self, count: usize) {
        self.wait("the app to be asked", |counts| counts.asked >= count).await;
    }

    /// Waits until the guard has closed so many connections.
    pub(crate) async fn wait_for_hung_up(&self, count: usize) {
        self.wait("the guard to hang up on the app", |counts| counts.hung_up >= count).await;
    }

    /// Waits until so many connections are closed, by either side, and the guard's kernel has heard of it: `close`
    /// may return before the FIN or the reset arrives, where the machine is busy.
    pub(crate) async fn wait_for_ended(&self, count: usize) {
        self.wait("connections to end", |counts| counts.ended >= count).await;
        let Place::Tcp(address) = &self.place else { return };
        let known = async {
            loop {
                let counts = *self.counts.borrow();
                if established_to(address.port()) <= counts.connections - counts.ended {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        within("the end of a connection to arrive", known).await;
    }

    async fn wait(&self, what: &str, until: impl Fn(&Counts) -> bool) {
        let mut counts = self.counts.clone();
        within(what, counts.wait_for(until)).await.expect("the app is running");
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.stop.take();
        let ended = self.thread.take().map(thread::JoinHandle::join);
        if let Some(Err(panic)) = ended
            && !thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// How many sockets of this machine are connected to a port of `127.0.0.1` and know of no end: the lines of
/// `/proc/net/tcp` with that remote port and the state `TCP_ESTABLISHED`, 1.
fn established_to(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux tells its connections");
    let remote = format!("0100007F:{port:04X}");
    let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines.filter(|fields| fields.get(2) == Some(&remote.as_str()) && fields.get(3) == Some(&"01")).count()
}

/// The plain allow.
pub(crate) const ALLOW: &str = r#"{"actionCode":0,"errCode":0,"errMsg":"","errDlt":"","nextCode":0}"#;

impl Act {
    /// Raw bytes.
    pub(crate) fn send(bytes: impl Into<Bytes>) -> Act {
        Act::Send(bytes.into())
    }

    /// A whole answer with status 200.
    pub(crate) fn json(body: impl Into<Bytes>) -> Act {
        Act::answer("200 OK", &[("Content-Type", "application/json")], body)
    }

    /// A whole answer.
    pub(crate) fn answer(status: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Act {
        let body = body.into();
        let mut bytes = format!("HTTP/1.1 {status}\r\n");
        for (name, value) in headers {
            bytes.push_str(&format!("{name}: {value}\r\n"));
        }
        bytes.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
        Act::Send([bytes.as_bytes(), &body].concat().into())
    }
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {
    fn reset(&self);
}

impl Duplex for TcpStream {
    fn reset(&self) {
        socket2::SockRef::from(self).set_linger(Some(Duration::ZERO)).expect("a socket");
    }
}

impl Duplex for UnixStream {
    fn reset(&self) {}
}

impl<S: Fn(&Asked) -> Vec<Act> + Send + Sync + 'static> State<S> {
    async fn serve(self: Arc<Self>, listener: Listener, mut stopped: oneshot::Receiver<()>) {
        let mut connections = JoinSet::new();
        loop {
            let stream: Box<dyn Duplex> = tokio::select! {
                _ = &mut stopped => break,
                Some(ended) = connections.join_next() => {
                    passed_on(ended);
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            let mut number = 0;
            self.counts.send_modify(|counts| {
                number = counts.connections;
                counts.connections += 1;
            });
            let state = Arc::clone(&self);
            connections.spawn(async move {
                state.connection(stream, number).await;
                state.counts.send_modify(|counts| counts.ended += 1);
            });
        }
        listener.close();
        connections.abort_all();
        while let Some(ended) = connections.join_next().await {
            passed_on(ended);
        }
    }

    async fn connection(&self, mut stream: Box<dyn Duplex>, connection: usize) {
        let mut buffer = BytesMut::new();
        if !self.play(&mut stream, &mut buffer, &self.greeting).await {
            return;
        }
        while let Some((head, body)) = request(&mut stream, &mut buffer).await {
            let asked = {
                let mut all = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
                let asked = Asked { number: all.len(), connection, head, body };
                all.push(asked.clone());
                asked
            };
            self.counts.send_modify(|counts| counts.asked += 1);
            let acts = (self.script)(&asked);
            if !self.play(&mut stream, &mut buffer, &acts).await {
                return;
            }
        }
        self.counts.send_modify(|counts| counts.hung_up += 1);
    }

    /// Plays the acts; false when the connection is over.
    async fn play(&self, stream: &mut Box<dyn Duplex>, buffer: &mut BytesMut, acts: &[Act]) -> bool {
        for act in acts {
            let open = match act {
                // A guard that does not listen any more is no fault of the script.
                Act::Send(bytes) => stream.write_all(bytes).await.is_ok() && stream.flush().await.is_ok(),
                Act::Begin => matches!(stream.read_buf(buffer).await, Ok(1..)),
                Act::Wait(gate) => tokio::select! {
                    () = gate.opened() => true,
                    () = end(stream, buffer) => false,
                },
                Act::Work(time) => tokio::select! {
                    () = tokio::time::sleep(*time) => true,
                    () = end(stream, buffer) => false,
                },
                Act::Silence => {
                    end(stream, buffer).await;
                    false
                }
                Act::Deafness => std::future::pending().await,
                Act::Close => {
                    let _ = stream.shutdown().await;
                    return false;
                }
                Act::Reset => {
                    stream.reset();
                    return false;
                }
            };
            if !open {
                self.counts.send_modify(|counts| counts.hung_up += 1);
                return false;
            }
        }
        true
    }
}

impl Listener {
    /// Stops listening, also if another test starts a program just now, which has a copy of the socket for a moment.
    fn close(self) {
        if let Listener::Tcp(listener) = self {
            let _ = socket2::SockRef::from(&listener).shutdown(std::net::Shutdown::Both);
        }
    }

    async fn accept(&self) -> Box<dyn Duplex> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept().await.expect("a connection");
                stream.set_nodelay(true).expect("a socket");
                Box::new(stream)
            }
            Listener::Unix(listener) => Box::new(listener.accept().await.expect("a connection").0),
        }
    }
}

fn passed_on(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}

/// Reads on until the other side ends the connection.
async fn end(stream: &mut Box<dyn Duplex>, buffer: &mut BytesMut) {
    while matches!(Pin::new(&mut *stream).read_buf(buffer).await, Ok(1..)) {}
}

/// Reads a request; `None` at the end of the connection.
async fn request(stream: &mut Box<dyn Duplex>, buffer: &mut BytesMut) -> Option<(String, Bytes)> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if !matches!(stream.read_buf(buffer).await, Ok(1..)) {
            return None;
        }
    };
    let head: String = buffer[..end].iter().copied().map(char::from).collect();
    buffer.advance(end);
    let lengths = head.lines().filter_map(|line| line.split_once(": "));
    let mut lengths = lengths.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = lengths.next().map_or(0, |(_, length)| length.parse().expect("a length that is a number"));
    while buffer.len() < length {
        if !matches!(stream.read_buf(buffer).await, Ok(1..)) {
            return None;
        }
    }
    Some((head, buffer.split_to(length).freeze()))
}
