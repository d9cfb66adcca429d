//! What both benches need: a folder, ports, certificates, processes that end with the bench, and the kernel's figures.

#![allow(dead_code, reason = "each bench uses its own part of this")]
#![allow(unsafe_code, reason = "affinity and the signal at a parent's death have no safe interface")]

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, fs, io, process, thread};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

/// The core of whatever is measured.
pub(crate) const MEASURED_CORE: usize = 0;

/// The core of the callers and the app.
pub(crate) const OTHER_CORE: usize = 1;

/// The command that every callback of the benches carries.
pub(crate) const COMMAND: &str = "callbackBeforeSendGroupMsgCommand";

/// OpenIM's tracing ID in [`SAMPLE`].
pub(crate) const OPERATION_ID: &str = "1730891241515000001";

/// A body as OpenIM sends it, of 683 bytes.
pub(crate) const SAMPLE: &str =
    include_str!("../../tests/support/openim/samples/callbackBeforeSendGroupMsgCommand/request.json");

/// An answer that lets the message through, `length` bytes long.
pub(crate) fn allow_answer(length: usize) -> String {
    let (head, tail) = (r#"{"actionCode":0,"errCode":0,"errMsg":"","errDlt":""#, r#"","nextCode":0}"#);
    format!("{head}{}{tail}", "x".repeat(length - head.len() - tail.len()))
}

/// Runs a bench: what it measures is a failure if it says `false`, or why it could not be measured.
pub(crate) fn run(
    name: &str,
    measure: impl FnOnce() -> Result<bool, Box<dyn std::error::Error>>,
) -> process::ExitCode {
    if !measuring() {
        return process::ExitCode::SUCCESS;
    }
    match measure() {
        Ok(true) => process::ExitCode::SUCCESS,
        Ok(false) => process::ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{name}: {error}");
            process::ExitCode::FAILURE
        }
    }
}

/// Whether this is a run under `cargo bench`; `cargo test --benches` only wants to know that it builds.
fn measuring() -> bool {
    let measuring = env::args().any(|argument| argument == "--bench");
    if !measuring {
        println!("Nothing is measured: that is for `cargo bench`");
    }
    measuring
}

/// The guard's program, as a release has it: brought up to date by `cargo build --release` here, and copied, so that
/// nobody's next build gets into the figures. The program that cargo itself builds beside a bench is another one: with
/// what the tests ask of the dependencies (tokio's clock then takes a lock) and in the quick profile of the benches.
///
/// `CALLBACK_GUARD_TEST_PROGRAM` names another one that is built already, as it does for the tests.
pub(crate) fn guard_program(folder: &Folder) -> Result<PathBuf, Box<dyn std::error::Error>> {
    let copy = folder.path("callback-guard");
    if let Some(program) = env::var_os("CALLBACK_GUARD_TEST_PROGRAM") {
        fs::copy(program, &copy)?;
        return Ok(copy);
    }
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args([
        "build",
        "--release",
        "--bin",
        "callback-guard",
        "--message-format",
        "json-render-diagnostics",
    ]);
    cargo.arg("--manifest-path").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
    if let Some(target) = Path::new(env!("CARGO_TARGET_TMPDIR")).parent() {
        cargo.arg("--target-dir").arg(target);
    }
    let built = cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    let messages = String::from_utf8_lossy(&built.stdout);
    let mut programs = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message.get("executable")?.as_str()?))
    });
    let program = programs.next().filter(|_| built.status.success()).ok_or("cargo build --release failed")?;
    fs::copy(program, &copy)?;
    Ok(copy)
}

/// A folder below the target folder, removed at the end.
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// A new one, of this process.
    pub(crate) fn new(bench: &str) -> io::Result<Folder> {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{bench}-{}", process::id()));
        fs::create_dir_all(&path)?;
        Ok(Folder(path))
    }

    /// A file's path.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file and gives its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> io::Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Writes a self-signed P-256 certificate for loopback and its key: `cert.pem` and `key.pem`.
    pub(crate) fn certificate(&self) -> Result<(), Box<dyn std::error::Error>> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let certificate = rcgen::CertificateParams::new(names)?.self_signed(&key)?;
        self.write("cert.pem", &certificate.pem())?;
        self.write("key.pem", &key.serialize_pem())?;
        Ok(())
    }

    /// A caller's TLS, which trusts that certificate.
    pub(crate) fn client_config(
        &self,
        protocol: &[u8],
    ) -> Result<Arc<ClientConfig>, Box<dyn std::error::Error>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("cert.pem"))?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(Arc::new(config))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The name the certificate is for.
pub(crate) fn server_name() -> ServerName<'static> {
    ServerName::try_from("127.0.0.1").expect("an address is a name")
}

/// A loopback address where nothing listens. It was free a moment ago, which is as much as can be known.
pub(crate) fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

/// A process that ends with this one, however this one ends, and its children with it.
pub(crate) struct Started {
    child: Child,
    name: String,
}

impl Started {
    /// Starts a command on one core. Its output goes nowhere, its errors where ours go.
    pub(crate) fn new(command: &mut Command, core: usize) -> io::Result<Started> {
        let name = command.get_program().to_string_lossy().into_owned();
        bind_to(command, core);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let child = child.map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))?;
        Ok(Started { child, name })
    }

    /// Its ID.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it accepts connections.
    pub(crate) fn listens(&mut self, address: SocketAddr) -> io::Result<()> {
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            if TcpStream::connect(address).is_ok() {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("{} ended at its start: {status}", self.name)));
            }
            pause(Duration::from_millis(10));
        }
        Err(io::Error::other(format!("{} does not listen at {address}", self.name)))
    }

    /// CPU time of the process and its children so far.
    pub(crate) fn cpu(&self) -> Duration {
        // The kernel's USER_HZ: 100 on every architecture Rust knows.
        let ticks: u64 = self.tree().into_iter().filter_map(cpu_ticks).sum();
        Duration::from_millis(ticks * 10)
    }

    /// The process and its children.
    fn tree(&self) -> Vec<u32> {
        let root = self.id();
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        let ids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        ids.filter(|id| *id == root || parent(*id) == Some(root)).collect()
    }

    /// Its resident memory in KiB: all of it, the part that no file stands behind, and its share of what is shared.
    pub(crate) fn memory(&self) -> Memory {
        let read = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", self.id())).unwrap_or_default();
        let (status, rollup) = (read("status"), read("smaps_rollup"));
        let field = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        Memory {
            resident: field(&status, "VmRSS:"),
            anonymous: field(&status, "RssAnon:"),
            share: field(&rollup, "Pss:"),
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // SAFETY: the process is a child that was not waited for, so the ID is its own.
        unsafe { libc::kill(self.id().cast_signed(), libc::SIGTERM) };
        let until = Instant::now() + Duration::from_millis(500);
        while Instant::now() < until {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            pause(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Figures of [`Started::memory`], in KiB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) resident: u64,
    pub(crate) anonymous: u64,
    pub(crate) share: u64,
}

/// Makes a command run on one core, and end when this process does: a master of workers gets the signal that it passes
/// on to them.
pub(crate) fn bind_to(command: &mut Command, core: usize) {
    // SAFETY: what runs there makes system calls alone and allocates nothing.
    unsafe { command.pre_exec(move || pin(core)) };
    end_with_this_process(command);
}

/// Makes a command end when this process does, however that ends.
pub(crate) fn end_with_this_process(command: &mut Command) {
    let parent = process::id().cast_signed();
    let prepare = move || {
        // SAFETY: a plain system call, between fork and exec.
        let ended =
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) != 0 || libc::getppid() != parent };
        if ended { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: what runs there makes system calls alone and allocates nothing.
    unsafe { command.pre_exec(prepare) };
}

/// Makes room for every socket of a bench, as `src/descriptors.rs` does for the guard and for the same reason: the callers
/// would wait too. To be called before there is a second thread.
pub(crate) fn reserve_descriptors() -> Result<(), String> {
    callback_guard::descriptors::reserve(4096)
        .map_err(|shortage| format!("needs {} open files, {} are allowed", shortage.wanted, shortage.limit))
}

/// Keeps the calling thread on one core, and all that it starts from now on.
pub(crate) fn pin(core: usize) -> io::Result<()> {
    // SAFETY: the set is plain bits, made here and read by the call.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Puts the calling thread before every thread of an ordinary priority. Needs root, or `CAP_SYS_NICE`.
pub(crate) fn go_before_all() -> io::Result<()> {
    // SAFETY: the parameter is read by the call alone.
    let result = unsafe {
        let mut parameter: libc::sched_param = std::mem::zeroed();
        parameter.sched_priority = 50;
        libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameter)
    };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(io::Error::new(error.kind(), format!("SCHED_FIFO needs root, or CAP_SYS_NICE: {error}")))
}

/// Sleeps; no runtime runs on a thread that calls this.
pub(crate) fn pause(time: Duration) {
    #[allow(clippy::disallowed_methods, reason = "threads of a bench wait for processes and clocks")]
    thread::sleep(time);
}

fn stat(id: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name is in brackets and may hold anything.
    let (_, rest) = text.rsplit_once(") ")?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

fn parent(id: u32) -> Option<u32> {
    stat(id)?.get(1)?.parse().ok()
}

fn cpu_ticks(id: u32) -> Option<u64> {
    let fields = stat(id)?;
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// The machine and how busy it is, in one line.
pub(crate) fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (info, load, kernel) =
        (read("/proc/cpuinfo"), read("/proc/loadavg"), read("/proc/sys/kernel/osrelease"));
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let load: Vec<&str> = load.split(' ').take(3).collect();
    let mut line = format!("{}, ", model.trim_start_matches([' ', '\t', ':']));
    let _ = write!(
        line,
        "{} cores, Linux {}, load {}",
        info.lines().filter(|line| line.starts_with("processor")).count(),
        kernel.trim(),
        load.join(" ")
    );
    line
}

/// The value at a share of a sorted list, 0 to 1.
pub(crate) fn quantile<T: Copy>(sorted: &[T], share: f64) -> Option<T> {
    let last = sorted.len().checked_sub(1)?;
    // The smallest value that at least this share of them does not pass.
    let rank = (share * sorted.len() as f64).ceil() as usize;
    Some(sorted[rank.saturating_sub(1).min(last)])
}
