//! What a callback costs, beside nginx as a bare TLS reverse proxy: `cargo bench --bench speed`, some four minutes.
//!
//! CPU time of the whole process per callback, at saturation. The proxy has a core to itself, the app (another nginx) and
//! the load (wrk over HTTP/1.1, h2load over HTTP/2) share the other one. Guard and nginx take turns, and the figure is the
//! median of the rounds: two that ran a minute apart on a shared machine cannot be compared, and only the ratio can be
//! carried from one machine to another. Both serve one P-256 certificate over TLS 1.3, get the same body and headers and
//! pass on the same answer; nginx writes no access log, while the guard checks both bodies, counts and logs every callback.
//!
//! An answer counts only if it is the app's: the guard's own count of those must grow by as many as the load got.
//!
//! The program measured is the one `cargo build --release` makes, and the bench has cargo make it first; see
//! `guard_program` in `benches/support`.

use std::error::Error;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, fs};

use rustls::{ClientConfig, ClientConnection, StreamOwned};

use support::{COMMAND, Folder, MEASURED_CORE, Memory, OPERATION_ID, OTHER_CORE, SAMPLE, Started};

mod support;

type Failure = Box<dyn Error>;

const ROUNDS: usize = 5;
const ROUND_SECONDS: u32 = 5;
const STARTS: usize = 15;

/// How long the guard is left alone before its memory is read again.
const QUIET: Duration = Duration::from_secs(6);

const BODY_BYTES: usize = 700;
const ANSWER_BYTES: usize = 383;

/// Connections of wrk, and connections and streams of h2load.
const H1_CONNECTIONS: &str = "64";
const H2_CONNECTIONS: &str = "4";
const H2_STREAMS: &str = "16";

const APT: &str = "apt-get install -y nginx-light wrk nghttp2-client";

fn main() -> ExitCode {
    support::run("speed", measure)
}

fn measure() -> Result<bool, Failure> {
    for tool in ["nginx", "wrk"] {
        found(tool).ok_or_else(|| format!("{tool} is missing: {APT}"))?;
    }
    let bench = Bench::new()?;
    support::pin(OTHER_CORE)?;
    println!("`cargo bench --bench speed` on {}", support::machine());
    println!("nginx: {}; body {BODY_BYTES} bytes, answer {ANSWER_BYTES}, TLS 1.3, P-256\n", nginx_version());
    let _app = bench.app()?;
    let start = bench.starts()?;
    let guard_at = support::free_address()?;
    let admin = support::free_address()?;
    let guard = bench.guard(guard_at, admin, "info")?;
    // What the start alone needed is given back too.
    support::pause(QUIET);
    let before = guard.memory();
    let quiet_at = support::free_address()?;
    let quiet_admin = support::free_address()?;
    let quiet = bench.guard(quiet_at, quiet_admin, "off")?;
    let nginx_at = support::free_address()?;
    let nginx = bench.nginx(nginx_at)?;
    let peers = [
        Peer { process: &guard, address: guard_at, admin: Some(admin) },
        Peer { process: &nginx, address: nginx_at, admin: None },
        Peer { process: &quiet, address: quiet_at, admin: Some(quiet_admin) },
    ];
    let mut good = true;
    let h1 = bench.rounds(&peers, Load::Wrk, &mut good)?;
    println!("| CPU us per callback | guard | nginx | guard / nginx | guard, log off |");
    println!("|---|--:|--:|--:|--:|");
    row(&format!("HTTP/1.1, {H1_CONNECTIONS} connections"), &h1);
    if found("h2load").is_some() {
        let h2 = bench.rounds(&peers, Load::H2load, &mut good)?;
        row(&format!("HTTP/2, {H2_CONNECTIONS} connections x {H2_STREAMS} streams"), &h2);
    } else {
        println!("\nHTTP/2 is not measured: {APT}");
    }
    println!("\nMedian (min .. max) of {ROUNDS} rounds of {ROUND_SECONDS} s, taking turns.\n");
    let size = fs::metadata(&bench.guard)?.len();
    // What a load leaves behind is given back after some quiet seconds.
    support::pause(QUIET);
    print_rest(size, &start, before, guard.memory(), nginx.memory());
    Ok(good)
}

/// One line of the table of CPU time.
fn row(name: &str, costs: &[Vec<f64>]) {
    let ratio = median(&costs[0]) / median(&costs[1]);
    let [guard, nginx, quiet] = [0, 1, 2].map(|at| spread(&costs[at]));
    println!("| {name} | {guard} | {nginx} | **{ratio:.2}** | {quiet} |");
}

fn print_rest(size: u64, start: &[f64], before: Memory, after: Memory, nginx: Memory) {
    let mib = |kib: u64| kib as f64 / 1024.0;
    println!("| | measured | wanted |");
    println!("|---|--:|--:|");
    println!("| first answer after the start, {STARTS} starts | {} ms | 15 ms |", spread(start));
    for (when, memory, wanted) in [
        ("six seconds after the start, before the first callback", before, 8),
        ("six seconds after the load", after, 12),
    ] {
        println!(
            "| resident memory {when} (anonymous, PSS) | {:.1} MiB ({:.1}, {:.1}) | < {wanted} MiB |",
            mib(memory.resident),
            mib(memory.anonymous),
            mib(memory.share)
        );
    }
    println!("| nginx's master after the load, its worker not counted | {:.1} MiB | |", mib(nginx.resident));
    println!("| binary | {:.1} MiB | < 12 MiB |", size as f64 / f64::from(1 << 20));
    println!("\n{}", support::machine());
}

fn found(tool: &str) -> Option<()> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders = env::split_paths(&path).chain([Path::new("/usr/sbin").to_owned()]);
    folders.any(|folder| folder.join(tool).is_file()).then_some(())
}

/// nginx by a path that is in no user's PATH.
fn nginx_command() -> Command {
    Command::new(if Path::new("/usr/sbin/nginx").is_file() { "/usr/sbin/nginx" } else { "nginx" })
}

fn nginx_version() -> String {
    let output = nginx_command().arg("-v").output().map(|output| output.stderr).unwrap_or_default();
    let text = String::from_utf8_lossy(&output).into_owned();
    text.trim().rsplit('/').next().unwrap_or_default().to_owned()
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    support::quantile(&sorted, 0.5).unwrap_or(f64::NAN)
}

fn spread(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{:.1} ({least:.1} .. {most:.1})", median(values))
}

/// A proxy under load.
struct Peer<'p> {
    process: &'p Started,
    address: SocketAddr,
    /// Where the guard tells what it counted.
    admin: Option<SocketAddr>,
}

#[derive(Clone, Copy)]
enum Load {
    Wrk,
    H2load,
}

/// What a load generator tells at its end.
struct Told {
    answers: u64,
    errors: u64,
}

struct Bench {
    folder: Folder,
    guard: PathBuf,
    app: SocketAddr,
    tls: Arc<ClientConfig>,
    body: String,
}

impl Bench {
    fn new() -> Result<Bench, Failure> {
        let folder = Folder::new("speed")?;
        folder.certificate()?;
        let filler = "x".repeat(BODY_BYTES - SAMPLE.trim_end().len());
        let body = SAMPLE.trim_end().replacen(r#""ex":"""#, &format!(r#""ex":"{filler}""#), 1);
        assert_eq!(body.len(), BODY_BYTES, "the sample has an empty field to fill");
        folder.write("body.json", &body)?;
        let (guard, tls) = (support::guard_program(&folder)?, folder.client_config(b"http/1.1")?);
        let bench = Bench { app: support::free_address()?, folder, guard, tls, body };
        bench.folder.write("load.lua", &bench.lua())?;
        Ok(bench)
    }

    /// A request made once and sent again and again, and a line of figures at the end.
    fn lua(&self) -> String {
        let body = &self.body;
        format!(
            "wrk.method = \"POST\"\nwrk.body = [==[{body}]==]\n\
             wrk.headers[\"Content-Type\"] = \"application/json\"\n\
             wrk.headers[\"operationID\"] = \"{OPERATION_ID}\"\n\
             function done(summary)\n  local e = summary.errors\n\
             io.write(string.format(\"TOLD %d %d\\n\", summary.requests, \
             e.connect + e.read + e.write + e.status + e.timeout))\nend\n"
        )
    }

    fn nginx_with(&self, name: &str, http: &str) -> Result<Command, Failure> {
        let folder = self.folder.path("");
        let folder = folder.display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("  {kind}_temp_path {folder}/{name}-{kind};\n"))
            .concat();
        let text = format!(
            "daemon off;\nworker_processes 1;\npid {folder}/{name}.pid;\nerror_log stderr crit;\n\
             events {{ worker_connections 4096; }}\nhttp {{\n{temporary}\
             \x20 access_log off;\n  keepalive_requests 1000000000;\n  keepalive_timeout 1h;\n{http}}}\n"
        );
        let file = self.folder.write(&format!("{name}.conf"), &text)?;
        let mut command = nginx_command();
        command.arg("-e").arg("stderr").arg("-c").arg(file);
        Ok(command)
    }

    fn app(&self) -> Result<Started, Failure> {
        let (address, answer) = (self.app, support::allow_answer(ANSWER_BYTES));
        let http = format!(
            "  server {{\n    listen {address};\n    default_type application/json;\n    \
             location / {{ return 200 '{answer}'; }}\n  }}\n"
        );
        let mut app = Started::new(&mut self.nginx_with("app", &http)?, OTHER_CORE)?;
        app.listens(address)?;
        Ok(app)
    }

    fn nginx(&self, address: SocketAddr) -> Result<Started, Failure> {
        let (app, cert, key) = (self.app, self.folder.path("cert.pem"), self.folder.path("key.pem"));
        let http = format!(
            "  upstream app {{\n    server {app};\n    keepalive 64;\n    keepalive_requests 1000000000;\n  }}\n  \
             server {{\n    listen {address} ssl http2;\n    ssl_certificate {};\n    ssl_certificate_key {};\n    \
             ssl_protocols TLSv1.3;\n    ssl_session_tickets off;\n    location / {{\n      proxy_pass http://app;\n      \
             proxy_http_version 1.1;\n      proxy_set_header Connection \"\";\n    }}\n  }}\n",
            cert.display(),
            key.display()
        );
        let mut nginx = Started::new(&mut self.nginx_with("proxy", &http)?, MEASURED_CORE)?;
        nginx.listens(address)?;
        Ok(nginx)
    }

    fn spawn_guard(
        &self,
        address: SocketAddr,
        admin: SocketAddr,
        log_level: &str,
    ) -> Result<Started, Failure> {
        let mut command = Command::new(&self.guard);
        command
            .arg("proxy")
            .args(["--workers", "1", "--log-format", "json", "--log-level", log_level])
            .args(["--listen", &address.to_string(), "--admin-listen", &admin.to_string()])
            .args(["--upstream", &format!("http://{}", self.app)])
            .arg("--tls-cert")
            .arg(self.folder.path("cert.pem"))
            .arg("--tls-key")
            .arg(self.folder.path("key.pem"));
        Ok(Started::new(&mut command, MEASURED_CORE)?)
    }

    fn guard(&self, address: SocketAddr, admin: SocketAddr, log_level: &str) -> Result<Started, Failure> {
        let mut guard = self.spawn_guard(address, admin, log_level)?;
        guard.listens(address)?;
        Ok(guard)
    }

    /// Milliseconds from starting the guard to the last byte of its first answer.
    fn starts(&self) -> Result<Vec<f64>, Failure> {
        (0..STARTS)
            .map(|_| {
                let (address, admin) = (support::free_address()?, support::free_address()?);
                let begun = Instant::now();
                let guard = self.spawn_guard(address, admin, "info")?;
                let stream = loop {
                    match TcpStream::connect(address) {
                        Ok(stream) => break stream,
                        Err(error) if begun.elapsed() > Duration::from_secs(10) => return Err(error.into()),
                        Err(_) => support::pause(Duration::from_micros(100)),
                    }
                };
                self.ask_once(stream)?;
                let took = begun.elapsed();
                drop(guard);
                Ok(took.as_secs_f64() * 1e3)
            })
            .collect()
    }

    fn ask_once(&self, stream: TcpStream) -> Result<(), Failure> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let client = ClientConnection::new(Arc::clone(&self.tls), support::server_name())?;
        let mut stream = StreamOwned::new(client, stream);
        let (body, length) = (&self.body, self.body.len());
        let request = format!(
            "POST /{COMMAND} HTTP/1.1\r\nHost: localhost\r\noperationID: {OPERATION_ID}\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes())?;
        let (mut answer, end) = (Vec::new(), support::allow_answer(ANSWER_BYTES));
        while !answer.ends_with(end.as_bytes()) {
            let mut chunk = [0; 4096];
            match stream.read(&mut chunk)? {
                0 => return Err("the first answer was cut short".into()),
                count => answer.extend_from_slice(&chunk[..count]),
            }
        }
        Ok(())
    }

    /// Microseconds of CPU time per callback of each peer in each round.
    fn rounds(&self, peers: &[Peer<'_>], load: Load, good: &mut bool) -> Result<Vec<Vec<f64>>, Failure> {
        let mut costs = vec![Vec::new(); peers.len()];
        // A round before the first warms up what is slow once only.
        for round in 0..=ROUNDS {
            for (peer, costs) in peers.iter().zip(&mut costs) {
                let counted = allowed(peer)?;
                let cpu = peer.process.cpu();
                let told = self.run(load, peer.address, if round == 0 { 1 } else { ROUND_SECONDS })?;
                let cpu = peer.process.cpu() - cpu;
                if let (Some(before), Some(after)) = (counted, allowed(peer)?)
                    && after - before < told.answers
                {
                    eprintln!("{} answers came, {} of them the app's", told.answers, after - before);
                    *good = false;
                }
                if told.errors > 0 || told.answers == 0 {
                    eprintln!("{} errors beside {} answers", told.errors, told.answers);
                    *good = false;
                }
                if round > 0 {
                    costs.push(cpu.as_secs_f64() * 1e6 / told.answers as f64);
                }
            }
        }
        Ok(costs)
    }

    fn run(&self, load: Load, address: SocketAddr, seconds: u32) -> Result<Told, Failure> {
        let url = format!("https://{address}/{COMMAND}");
        let mut command = match load {
            Load::Wrk => {
                let mut command = Command::new("wrk");
                command.args(["-t1", "-c", H1_CONNECTIONS, "-d", &format!("{seconds}s"), "-s"]);
                command.arg(self.folder.path("load.lua"));
                command
            }
            Load::H2load => {
                let mut command = Command::new("h2load");
                command.args(["-t1", "-c", H2_CONNECTIONS, "-m", H2_STREAMS, "-D", &seconds.to_string()]);
                command.args(["-H", &format!("operationID: {OPERATION_ID}")]);
                command.args(["-H", "content-type: application/json", "-d"]);
                command.arg(self.folder.path("body.json"));
                command
            }
        };
        support::bind_to(&mut command, OTHER_CORE);
        let output = command.arg(url).stderr(Stdio::inherit()).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        told(load, &text).ok_or_else(|| format!("the load's output is not understood:\n{text}").into())
    }
}

/// Reads the figures of a load generator.
fn told(load: Load, text: &str) -> Option<Told> {
    match load {
        Load::Wrk => {
            let line = text.lines().find_map(|line| line.strip_prefix("TOLD "))?;
            let (answers, errors) = line.split_once(' ')?;
            Some(Told { answers: answers.parse().ok()?, errors: errors.parse().ok()? })
        }
        Load::H2load => {
            let line = text.lines().find(|line| line.starts_with("requests: "))?;
            let figure = |name: &str| {
                let part = line.split(", ").find_map(|part| part.strip_suffix(name))?;
                part.split_whitespace().last()?.parse::<u64>().ok()
            };
            let codes = text.lines().find_map(|line| line.strip_prefix("status codes: "))?;
            let good = codes.split(" 2xx").next()?.trim().parse::<u64>().ok()?;
            let answers = figure(" succeeded")?;
            // At the end of its time it gives up what is under way, and calls that nothing.
            Some(Told { answers, errors: figure(" timeout")? + answers.saturating_sub(good) })
        }
    }
}

/// How many callbacks the guard has answered with what the app allowed.
fn allowed(peer: &Peer<'_>) -> Result<Option<u64>, Failure> {
    let Some(admin) = peer.admin else { return Ok(None) };
    let mut stream = TcpStream::connect(admin)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let counts = text.lines().filter(|line| {
        line.starts_with("callback_guard_callbacks_total{")
            && line.contains(r#"origin="upstream""#)
            && line.contains(r#"verdict="allow""#)
    });
    Ok(Some(counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()))
}
