//! The toy app: a business app of a few lines, and every way in which it can fail.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// The word that a healthy app refuses.
pub(in crate::cli) const BAD_WORD: &str = "casino";

/// `errCode` of the app's refusals.
pub(super) const REFUSAL: i32 = 5001;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 128;

/// What the app does with a callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behaviour {
    /// Allows, and refuses what has a bad word in it.
    Healthy,
    /// Reads the callback and never answers.
    Slow,
    /// Does not even listen.
    Dead,
    /// Means the same as when healthy, with the codes as strings.
    WrongTypes,
    /// Says that it failed and that it refuses, both at once.
    Contradictory,
    /// A page of HTML with status 502, as a web server in front of a crashed app sends.
    Html,
}

impl Behaviour {
    /// All of them, by their names in `/behave/NAME`.
    pub(super) const ALL: [(&'static str, Behaviour); 6] = [
        ("healthy", Behaviour::Healthy),
        ("slow", Behaviour::Slow),
        ("dead", Behaviour::Dead),
        ("wrong-types", Behaviour::WrongTypes),
        ("contradictory", Behaviour::Contradictory),
        ("html", Behaviour::Html),
    ];

    /// The answer to a callback, or none at all.
    fn answer(self, callback: &str) -> Option<(StatusCode, String)> {
        let refused = callback.contains(BAD_WORD);
        match self {
            Behaviour::Slow | Behaviour::Dead => None,
            Behaviour::Healthy => Some((StatusCode::OK, healthy_answer(refused))),
            Behaviour::WrongTypes => {
                Some((StatusCode::OK, json(0, refused, if refused { r#""1""# } else { r#""""# })))
            }
            Behaviour::Contradictory => Some((StatusCode::OK, json(1, true, "1"))),
            Behaviour::Html => Some((
                StatusCode::BAD_GATEWAY,
                "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>\n".to_owned(),
            )),
        }
    }
}

/// What a healthy app answers: an allow, or a refusal with [`REFUSAL`].
pub(in crate::cli) fn healthy_answer(refused: bool) -> String {
    json(0, refused, if refused { "1" } else { "0" })
}

/// The five fields that OpenIM reads; `next` is the JSON of `nextCode`.
fn json(action: i32, refused: bool, next: &str) -> String {
    let (code, text) = if refused { (REFUSAL, "that word is not welcome here") } else { (0, "") };
    format!(r#"{{"actionCode":{action},"errCode":{code},"errMsg":"{text}","errDlt":"","nextCode":{next}}}"#)
}

/// The app, on a port of its own.
#[derive(Debug)]
pub(super) struct App {
    address: SocketAddr,
    behaviour: Rc<Cell<Behaviour>>,
    port: RefCell<Port>,
}

/// The app's port: it keeps it while it is dead, so that nobody else answers there.
#[derive(Debug)]
enum Port {
    Listening(JoinHandle<()>),
    Bound(TcpSocket),
    /// In between.
    Changing,
}

impl App {
    /// Starts it, healthy.
    pub(super) fn start() -> io::Result<App> {
        let socket = bound(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let address = socket.local_addr()?;
        let behaviour = Rc::new(Cell::new(Behaviour::Healthy));
        let listening = listen(socket, &behaviour)?;
        Ok(App { address, behaviour, port: RefCell::new(Port::Listening(listening)) })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Switches the behaviour. When this returns, the next callback meets the new one.
    pub(super) async fn behave(&self, behaviour: Behaviour) -> io::Result<()> {
        self.behaviour.set(behaviour);
        let before = self.port.replace(Port::Changing);
        let after = match (before, behaviour) {
            (Port::Listening(task), Behaviour::Dead) => {
                task.abort();
                // Over when the listener and all its connections are closed.
                let _ = task.await;
                tokio::task::yield_now().await;
                Port::Bound(bound(self.address)?)
            }
            (Port::Bound(socket), Behaviour::Dead) => Port::Bound(socket),
            (Port::Bound(socket), _) => Port::Listening(listen(socket, &self.behaviour)?),
            (port @ (Port::Listening(_) | Port::Changing), _) => port,
        };
        self.port.replace(after);
        Ok(())
    }

    /// Serves `POST /behave/NAME` on a port of its own, and says where that is.
    pub(super) async fn switchboard(self: &Rc<Self>) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let app = Rc::clone(self);
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let app = Rc::clone(&app);
                tokio::task::spawn_local(async move {
                    let service = service_fn(|request: Request<Incoming>| app.switch(request));
                    // Whoever sent it sees what went wrong.
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Ok(address)
    }

    async fn switch(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let wanted = request.uri().path().strip_prefix("/behave/").unwrap_or_default();
        let found = Behaviour::ALL.iter().find(|(name, _)| *name == wanted);
        let (status, text) = match found {
            Some((name, behaviour)) if request.method() == Method::POST => {
                match self.behave(*behaviour).await {
                    Ok(()) => (StatusCode::OK, format!("the app is now {name}\n")),
                    Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("not switched: {error}\n")),
                }
            }
            Some(_) | None => {
                let names = Behaviour::ALL.map(|(name, _)| name).join(", ");
                (StatusCode::NOT_FOUND, format!("there is POST /behave/NAME, NAME being one of {names}\n"))
            }
        };
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        Ok(response)
    }
}

/// A socket that has its port and does not listen: whoever connects is refused.
fn bound(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    // The connections that just ended there must not hold up the next beginning.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

fn listen(socket: TcpSocket, behaviour: &Rc<Cell<Behaviour>>) -> io::Result<JoinHandle<()>> {
    let listener = socket.listen(BACKLOG)?;
    let behaviour = Rc::clone(behaviour);
    Ok(tokio::task::spawn_local(async move {
        // Ends with this task, and all connections with it.
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn_local(serve(stream, Rc::clone(&behaviour)));
            while connections.try_join_next().is_some() {}
        }
    }))
}

async fn serve(stream: TcpStream, behaviour: Rc<Cell<Behaviour>>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request: Request<Incoming>| answer(request, behaviour.get()));
    // A caller that went away is not the app's concern.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(
    request: Request<Incoming>,
    behaviour: Behaviour,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    let Some((status, text)) = behaviour.answer(&String::from_utf8_lossy(&body)) else {
        return std::future::pending().await;
    };
    let kind = if text.starts_with('<') { "text/html" } else { "application/json" };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    Ok(response)
}
