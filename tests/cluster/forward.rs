//! A way to the API server that a test can cut and freeze, as a network does.

use std::future::pending;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc as blocking};
use std::thread::{self, JoinHandle};
use std::{fs, io};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::audit::{ACCOUNT, Audit, account};
use super::clock::Clock;
use super::cluster::{Cluster, Namespace, PATIENCE, Stage, clean, eventually, run};
use super::process::Process;
use super::support::{Authority, Folder};
use super::tls_host::server_config;

/// Forwards connections from a port of 127.0.0.1 to the API server of a cluster. Ends when it is dropped, with all of them.
pub(crate) struct Forward {
    address: SocketAddr,
    ca: PathBuf,
    accepted: Arc<AtomicUsize>,
    commands: Option<mpsc::UnboundedSender<Command>>,
    thread: Option<JoinHandle<()>>,
    /// Keeps the port from others while nothing listens on it.
    _port: Socket,
    _folder: Folder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Passes,
    /// Answers pass.
    RequestsFrozen,
    Frozen,
    Cut,
}

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToClient,
}

impl State {
    fn passes(self, direction: Direction) -> bool {
        match self {
            State::Passes => true,
            State::RequestsFrozen => direction == Direction::ToClient,
            State::Frozen | State::Cut => false,
        }
    }
}

/// The next state, and where to report that it has been reached.
type Command = (State, blocking::Sender<()>);

impl Forward {
    /// Forwards bytes as they are: clients see the API server's own certificate.
    pub(crate) fn to(cluster: &Cluster) -> Forward {
        let server = SocketAddr::from((cluster.node(), 6443));
        Forward::start(server, cluster.ca(), Folder::new(), pending())
    }

    /// Terminates TLS with a certificate that is valid for centuries before and after today, and forwards what was in it over
    /// TLS of its own with the same protocol, `h2` or `http/1.1`. So a client reaches the API server whatever its clock
    /// says; for one that is behind, the certificates of a cluster are not valid yet. Client certificates end here: a client
    /// needs a token.
    pub(crate) fn terminating(cluster: &Cluster) -> Forward {
        let folder = Folder::new();
        let ca = folder.write("ca.pem", Authority::common().pem());
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("bound");
        // rcgen's dates, unless others are set, are of 1975 and 4096.
        let mut config = server_config(Authority::common(), Ipv4Addr::LOCALHOST);
        config.alpn_protocols = [&b"h2"[..], b"http/1.1"].map(<[u8]>::to_vec).to_vec();
        let (server, roots) = (SocketAddr::from((cluster.node(), 6443)), roots(&cluster.ca()));
        Forward::start(
            address,
            ca,
            folder,
            relay(listener, TlsAcceptor::from(Arc::new(config)), server, roots),
        )
    }

    fn start(
        to: SocketAddr,
        ca: PathBuf,
        folder: Folder,
        relay: impl Future<Output = ()> + Send + 'static,
    ) -> Forward {
        let port = bound((Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
        let address = port.local_addr().expect("bound").as_socket().expect("an address");
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&accepted);
        let (commands, received) = mpsc::unbounded_channel();
        let (started, starting) = blocking::channel();
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                tokio::select! {
                    () = forward(address, to, &counter, received, started) => {}
                    () = relay => {}
                }
            });
        };
        let thread = thread::Builder::new().name("forward".to_owned()).spawn(work).expect("a thread");
        starting.recv_timeout(PATIENCE).expect("it listens");
        let (commands, thread) = (Some(commands), Some(thread));
        Forward { address, ca, accepted, commands, thread, _port: port, _folder: folder }
    }

    /// Its URL, for a client that trusts [`Forward::ca`].
    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The PEM file of the authority of the certificate that clients see.
    pub(crate) fn ca(&self) -> &Path {
        &self.ca
    }

    /// Writes a kubeconfig that goes this way, and returns its path.
    pub(crate) fn kubeconfig(&self, cluster: &Cluster, namespace: &str, token: &str) -> PathBuf {
        cluster.kubeconfig_at(&self.url(), &self.ca, namespace, token)
    }

    /// How many connections it has accepted.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Closes all connections; new ones are refused. Done when it returns.
    pub(crate) fn cut(&self) {
        self.become_(State::Cut);
    }

    /// From when it returns no byte passes in either direction. Connections stay open, and new ones are accepted; what is sent
    /// on them stays in the sockets' buffers, and so does the end of a connection.
    pub(crate) fn freeze(&self) {
        self.become_(State::Frozen);
    }

    /// The same for what clients send alone: they go on to see what the server sends.
    pub(crate) fn freeze_requests(&self) {
        self.become_(State::RequestsFrozen);
    }

    /// Passes everything again, first what was held; after a cut it listens again.
    pub(crate) fn thaw(&self) {
        self.become_(State::Passes);
    }

    fn become_(&self, state: State) {
        let (done, reached) = blocking::channel();
        let commands = self.commands.as_ref().expect("until it is dropped");
        commands.send((state, done)).expect("its thread runs");
        reached.recv_timeout(PATIENCE).expect("its thread runs");
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.commands.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A socket that holds a port. Others may hold the same one if they belong to the same user and say that they share it.
fn bound(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn listener(address: SocketAddr) -> TcpListener {
    let socket = bound(address).expect("the port is held for this");
    socket.listen(128).expect("nobody else listens there");
    TcpListener::from_std(socket.into()).expect("a socket")
}

/// Until the channel of commands is closed.
async fn forward(
    address: SocketAddr,
    to: SocketAddr,
    accepted: &AtomicUsize,
    mut commands: mpsc::UnboundedReceiver<Command>,
    started: blocking::Sender<()>,
) {
    let state = watch::Sender::new(State::Passes);
    let mut listening = Some(listener(address));
    let mut connections = JoinSet::new();
    let _ = started.send(());
    loop {
        let accept = async {
            match &listening {
                Some(listener) => listener.accept().await,
                None => pending().await,
            }
        };
        tokio::select! {
            command = commands.recv() => {
                let Some((next, done)) = command else { return };
                if next == State::Cut {
                    listening = None;
                    connections.shutdown().await;
                } else if listening.is_none() {
                    listening = Some(listener(address));
                }
                // This thread alone runs the connections: when it goes on, each of them sees the new state first.
                state.send_replace(next);
                let _ = done.send(());
            }
            Some(_) = connections.join_next() => {}
            client = accept => {
                let (client, _) = client.expect("a connection");
                accepted.fetch_add(1, Ordering::Relaxed);
                // An error is the end of the connection, which both sides see.
                connections.spawn(pass(client, to, state.subscribe()));
            }
        }
    }
}

async fn pass(mut client: TcpStream, to: SocketAddr, mut state: watch::Receiver<State>) -> io::Result<()> {
    passing(&mut state, Direction::ToServer).await;
    let mut server = TcpStream::connect(to).await?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    tokio::try_join!(
        pump(from_client, to_server, state.clone(), Direction::ToServer),
        pump(from_server, to_client, state, Direction::ToClient)
    )?;
    Ok(())
}

async fn passing(state: &mut watch::Receiver<State>, direction: Direction) {
    // An error: the forwarder ends, and this task with it.
    let _ = state.wait_for(|state| state.passes(direction)).await;
}

async fn frozen(state: &mut watch::Receiver<State>, direction: Direction) {
    let _ = state.wait_for(|state| !state.passes(direction)).await;
}

/// Passes bytes, and then the end, in one direction while the state lets it.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut state: watch::Receiver<State>,
    direction: Direction,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        passing(&mut state, direction).await;
        let read = tokio::select! {
            biased;
            () = frozen(&mut state, direction) => continue,
            read = from.read(&mut buffer) => read?,
        };
        let mut rest = &buffer[..read];
        while !rest.is_empty() {
            passing(&mut state, direction).await;
            tokio::select! {
                biased;
                () = frozen(&mut state, direction) => {}
                written = to.write(rest) => rest = &rest[written?..],
            }
        }
        if read == 0 {
            passing(&mut state, direction).await;
            return to.shutdown().await;
        }
    }
}

fn roots(ca: &Path) -> RootCertStore {
    let pem = fs::read(ca).expect("the cluster's authority");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem).expect("PEM")).expect("an authority");
    roots
}

/// Terminates TLS, and opens it to the server again.
async fn relay(listener: std::net::TcpListener, tls: TlsAcceptor, server: SocketAddr, roots: RootCertStore) {
    listener.set_nonblocking(true).expect("a socket");
    let listener = TcpListener::from_std(listener).expect("a socket");
    let roots = Arc::new(roots);
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = tokio::select! {
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted.expect("a connection"),
        };
        let (tls, roots) = (tls.clone(), Arc::clone(&roots));
        connections.spawn(async move {
            if let Err(error) = reopen(stream, tls, server, roots).await {
                eprintln!("forward: {error}");
            }
        });
    }
}

async fn reopen(
    stream: TcpStream,
    tls: TlsAcceptor,
    server: SocketAddr,
    roots: Arc<RootCertStore>,
) -> io::Result<()> {
    let mut client = tls.accept(stream).await?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions of the provider")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = client.get_ref().1.alpn_protocol().map(<[u8]>::to_vec).into_iter().collect();
    let stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::IpAddress(server.ip().into());
    let mut server = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    // Either side may close without a word: that is its end, and no error.
    let _ = copy_bidirectional(&mut client, &mut server).await;
    Ok(())
}

/// A namespace with an account in it, whose kubeconfig goes through a forwarder.
struct Way<'c> {
    cluster: &'c Cluster,
    namespace: Namespace<'c>,
    forward: Forward,
    token: String,
    kubeconfig: PathBuf,
}

impl<'c> Way<'c> {
    fn new(cluster: &'c Cluster, forward: Forward) -> Way<'c> {
        let namespace = cluster.namespace(&[]);
        cluster.apply(&ACCOUNT.replace("NAMESPACE", &namespace.name));
        let token = cluster.token(&namespace.name, "shop");
        let kubeconfig = forward.kubeconfig(cluster, &namespace.name, &token);
        Way { cluster, namespace, forward, token, kubeconfig }
    }

    fn path(&self, rest: &str) -> String {
        format!("/api/v1/namespaces/{}/configmaps{rest}", self.namespace.name)
    }

    fn get(&self) -> Result<String, String> {
        self.cluster.kubectl_as(&self.kubeconfig, &["get", "--raw", &self.path("/policy")])
    }

    /// kubectl, started and not waited for.
    fn kubectl(&self, path: &str) -> Process {
        Process::start(self.cluster.endless_kubectl(&self.kubeconfig).args(["get", "--raw", path]))
    }

    /// A watch that has received its first event.
    fn watch(&self) -> Process {
        let watch = self.kubectl(&self.path("?watch=1&fieldSelector=metadata.name%3Dpolicy"));
        watch.wait_for_line("\"ADDED\"");
        watch
    }

    /// Changes the ConfigMap, not through the forwarder.
    fn change(&self, value: &str) {
        let (name, value) = (&self.namespace.name, format!("changed={value}"));
        self.cluster.kubectl(&["-n", name, "annotate", "configmap", "policy", "--overwrite", &value]);
    }
}

#[test]
fn a_cut_closes_connections_and_refuses_new_ones_until_it_is_over() {
    let Some(cluster) = Cluster::shared(Stage::A) else { return };
    let way = Way::new(cluster, Forward::to(cluster));
    assert!(way.get().expect("it passes").contains("policy.yaml"));
    let watch = way.watch();
    let before = way.forward.accepted();
    let mut idle = std::net::TcpStream::connect(way.forward.address).expect("it listens");
    idle.set_read_timeout(Some(PATIENCE)).expect("a time that is not 0");
    eventually("the idle connection", || (way.forward.accepted() > before).then_some(()));
    way.forward.cut();
    let end = idle.read(&mut [0; 1]).map_err(|error| error.kind());
    assert!(matches!(end, Ok(0) | Err(io::ErrorKind::ConnectionReset)), "{end:?}");
    let said = way.get().expect_err("it is cut");
    assert!(said.contains("refused"), "{said}");
    watch.wait_exit();
    let accepted = way.forward.accepted();
    assert!(cluster.try_kubectl(&["get", "--raw", "/readyz"]).is_ok(), "the API server itself is there");
    // Again, as from a cut it is nothing new.
    way.forward.cut();
    way.forward.thaw();
    assert!(way.get().expect("it passes again").contains("policy.yaml"));
    assert!(way.forward.accepted() > accepted);
}

#[test]
fn a_freeze_holds_requests_and_events_and_a_thaw_delivers_them() {
    let Some(cluster) = Cluster::shared(Stage::A) else { return };
    for forward in [Forward::to(cluster), Forward::terminating(cluster)] {
        let way = Way::new(cluster, forward);
        let watch = way.watch();
        way.forward.freeze();
        let (audit, accepted) = (Audit::of(cluster).since_now(), way.forward.accepted());
        // It has no connection yet.
        let request = way.kubectl(&way.path("/policy"));
        eventually("the connection of a client", || (way.forward.accepted() > accepted).then_some(()));
        way.change("frozen");
        // Time for what must not happen: some answers of the API server to another client.
        for _ in 0..5 {
            cluster.kubectl(&["get", "--raw", "/readyz"]);
        }
        assert!(request.is_running() && request.lines().is_empty(), "{:?}", request.lines());
        assert!(watch.is_running() && watch.lines().len() == 1, "{:?}", watch.lines());
        assert!(audit.by_user(&account(&way.namespace.name, "shop")).is_empty(), "it does not arrive");

        way.forward.thaw();
        watch.wait_for_line("frozen");
        request.wait_for_line("policy.yaml");
        assert_eq!(request.wait_exit(), 0);
        way.change("thawed");
        watch.wait_for_line("thawed");
        assert!(watch.is_running(), "its connection has stayed");
    }
}

#[test]
fn the_end_of_a_forwarder_ends_its_connections_also_those_that_are_frozen() {
    let Some(cluster) = Cluster::shared(Stage::A) else { return };
    for freeze in [false, true] {
        let mut way = Way::new(cluster, Forward::to(cluster));
        let watch = way.watch();
        if freeze {
            way.forward.freeze();
        }
        // The first one is dropped.
        let url = way.forward.url();
        way.forward = Forward::to(cluster);
        watch.wait_exit();
        let address = url.trim_start_matches("https://").parse::<SocketAddr>().expect("an address");
        let refused = std::net::TcpStream::connect(address).map(|_| ());
        assert_eq!(refused.map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionRefused));
    }
}

/// curl through a forwarder, under a clock: the version of HTTP and the status, or what it said.
fn curl(way: &Way<'_>, url: &str, ca: &Path, clock: &Clock, version: &str) -> Result<String, String> {
    let mut curl = clean("curl");
    clock.apply(&mut curl);
    let token = format!("Authorization: Bearer {}", way.token);
    curl.args(["-sS", "-m", "30", version, "-o", "/dev/null", "-w", "%{http_version} %{http_code}"]);
    curl.args(["-H", &token, "--cacert"]).arg(ca).arg(format!("{url}{}", way.path("/policy")));
    run(&mut curl, None)
}

#[test]
fn a_client_whose_clock_is_behind_reaches_the_api_server_where_tls_is_terminated_and_else_does_not() {
    let Some(cluster) = Cluster::shared(Stage::A) else { return };
    let (plain, terminating) = (Forward::to(cluster), Way::new(cluster, Forward::terminating(cluster)));
    let clock = Clock::new("+0");
    for (shift, valid) in [("+0", true), ("-1d", false)] {
        clock.shift(shift);
        for (option, version) in [("--http2", "2"), ("--http1.1", "1.1")] {
            let forward = &terminating.forward;
            let told = curl(&terminating, &forward.url(), forward.ca(), &clock, option);
            assert_eq!(told, Ok(format!("{version} 200")), "{shift}");
            let told = curl(&terminating, &plain.url(), plain.ca(), &clock, option);
            match told {
                Ok(told) => assert_eq!((told, valid), (format!("{version} 200"), true), "{shift}"),
                Err(error) => assert!(!valid && error.contains("not yet valid"), "{shift}: {error}"),
            }
        }
    }
    let stranger = curl(&terminating, &terminating.forward.url(), plain.ca(), &clock, "--http2");
    assert!(stranger.is_err(), "the API server's authority has not signed this certificate: {stranger:?}");
}
