//! The real binary, with its files in a folder of its own.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use serde_json::Value;

use super::lines::{Lines, Pace};
use super::{App, Authority, Folder, PATIENCE};

/// A running `callback-guard proxy`. Killed when it is dropped.
pub(crate) struct Guard {
    child: Mutex<Child>,
    folder: Folder,
    out: Arc<Lines>,
    errors: Arc<Lines>,
    listen: SocketAddr,
    admin: SocketAddr,
}

/// What it is started with.
pub(crate) struct Builder {
    folder: Folder,
    policy: String,
    flags: Vec<OsString>,
    environment: Vec<(String, String)>,
    /// The soft and the hard limit of open files, where they are not those of the tests.
    open_files: Option<[libc::rlim_t; 2]>,
    /// What it finds as `/sys/fs/cgroup`, if that is not the machine's.
    cgroup: Option<PathBuf>,
    /// A tool with its arguments and the program that it runs; empty: the program of this build, by itself.
    line: Vec<OsString>,
    /// What the new process does before it becomes the program: system calls alone.
    before: Vec<Before>,
}

/// See [`Builder::before`].
type Before = Box<dyn FnMut() -> std::io::Result<()> + Send + Sync>;

/// What it was when it did not start.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stderr: String,
}

impl Guard {
    /// A guard with this policy. The file is there, also for an empty text, which is the built-in policy.
    pub(crate) fn with(policy: impl Into<String>) -> Builder {
        Builder {
            folder: Folder::new(),
            policy: policy.into(),
            flags: Vec::new(),
            environment: Vec::new(),
            open_files: None,
            cgroup: None,
            line: Vec::new(),
            before: Vec::new(),
        }
    }

    pub(crate) fn listen(&self) -> SocketAddr {
        self.listen
    }

    pub(crate) fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    pub(crate) fn pid(&self) -> u32 {
        lock(&self.child).id()
    }

    /// Whether the process is still there.
    pub(crate) fn is_running(&self) -> bool {
        matches!(lock(&self.child).try_wait(), Ok(None))
    }

    /// The place of a file in its folder: `policy.yaml`, `cert.pem`, `key.pem` and what a test adds.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file in its folder, as one rename.
    pub(crate) fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        self.folder.write(name, contents)
    }

    /// What it has written to standard output so far.
    pub(crate) fn log_lines(&self) -> Vec<String> {
        self.out.so_far()
    }

    /// What it has written to standard error so far.
    pub(crate) fn error_lines(&self) -> Vec<String> {
        self.errors.so_far()
    }

    /// Waits for a line, and gives it. Blocks the test's thread.
    pub(crate) fn wait_for_log(&self, wanted: impl Fn(&str) -> bool) -> String {
        self.out
            .wait(|lines| lines.iter().find(|line| wanted(line)).cloned())
            .unwrap_or_else(|| panic!("no such line in the log:\n{}", self.log_lines().join("\n")))
    }

    /// The lines about callbacks so far.
    pub(crate) fn decisions(&self) -> Vec<Value> {
        decisions(&self.log_lines())
    }

    /// Waits until there are so many lines about callbacks. Blocks the test's thread.
    pub(crate) fn wait_for_decisions(&self, count: usize) -> Vec<Value> {
        self.out
            .wait(|lines| Some(decisions(lines)).filter(|found| found.len() >= count))
            .unwrap_or_else(|| panic!("fewer than {count} decisions:\n{}", self.log_lines().join("\n")))
    }

    /// Waits for the line about the callback with this operation ID. Blocks the test's thread.
    pub(crate) fn decision(&self, operation_id: &str) -> Value {
        let quoted = format!("\"operationID\":\"{operation_id}\"");
        let line = self.wait_for_log(|line| is_decision(line) && line.contains(&quoted));
        serde_json::from_str(&line).expect("a line is JSON")
    }

    /// The text of `/metrics`.
    pub(crate) fn metrics(&self) -> String {
        let (status, text) = self.admin("/metrics");
        assert_eq!(status, 200, "{text}");
        text
    }

    /// One metric, as it stands in the text: `callback_guard_in_flight`, `name{label="value"}`; 0 where it is not.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        let metrics = self.metrics();
        let values = metrics.lines().filter_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        values.map(|value| value.parse::<f64>().expect("a number")).sum()
    }

    /// The sum of a metric over all series that have these labels.
    pub(crate) fn count(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted: Vec<_> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        let metrics = self.metrics();
        let series = metrics.lines().filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '));
        let matching = series.filter(|(labels, _)| {
            let inner = labels.trim_start_matches('{').trim_end_matches('}');
            (labels.is_empty() || labels.starts_with('{'))
                && wanted.iter().all(|wanted| inner.split(',').any(|label| label == wanted))
        });
        matching.map(|(_, value)| value.parse::<f64>().expect("a number")).sum()
    }

    /// Waits, by asking again, until a metric has this value.
    pub(crate) async fn wait_for_metric(&self, series: &str, wanted: f64) {
        let begun = Instant::now();
        while self.metric(series) != wanted {
            let found = self.metric(series);
            assert!(begun.elapsed() < PATIENCE, "{series} is {found} and not {wanted}");
            tokio::task::yield_now().await;
        }
    }

    /// GET of a page of the admin port: status and body.
    pub(crate) fn admin(&self, path: &str) -> (u16, String) {
        ask(self.admin, "GET", path)
    }

    /// POST to the admin port, `/drain` say.
    pub(crate) fn admin_post(&self, path: &str) -> (u16, String) {
        ask(self.admin, "POST", path)
    }

    /// SIGTERM.
    pub(crate) fn terminate(&self) {
        self.signal(libc::SIGTERM);
    }

    /// Any signal.
    pub(crate) fn signal(&self, signal: i32) {
        let pid = libc::pid_t::try_from(self.pid()).expect("a pid");
        // SAFETY: no memory is involved; the child is not waited for yet, so its pid is its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "{}", std::io::Error::last_os_error());
    }

    /// Stops reading its log, as a reader that hangs.
    pub(crate) fn stall_log(&self) {
        self.out.set_pace(Pace::Stalls);
    }

    /// Reads its log again.
    pub(crate) fn resume_log(&self) {
        self.out.set_pace(Pace::Reads);
    }

    /// Closes the pipe of its log after the next line, as a reader that has died.
    pub(crate) fn leave_log(&self) {
        self.out.set_pace(Pace::Leaves);
    }

    /// Waits until it has ended by itself, and gives its exit code. Blocks the test's thread.
    pub(crate) fn wait_exit(&self) -> i32 {
        assert!(self.out.wait_for_end(), "it does not end:\n{}", self.log_lines().join("\n"));
        let status = lock(&self.child).wait().expect("a child can be waited for");
        status.code().unwrap_or(-1)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut child = lock(&self.child);
        let _ = child.kill();
        let _ = child.wait();
        self.resume_log();
        self.out.wait_for_end();
        let lines = self.log_lines();
        if thread::panicking() {
            let from = lines.len().saturating_sub(40);
            eprintln!("the guard's last lines:\n{}", lines[from..].join("\n"));
            eprintln!("{}", self.error_lines().join("\n"));
        } else {
            let bug = lines.iter().find(|line| line.contains("A bug: please report it"));
            assert!(bug.is_none(), "the guard panicked: {bug:?}");
        }
    }
}

impl Builder {
    /// The app behind it.
    pub(crate) fn upstream(self, app: &App) -> Builder {
        let url = app.url();
        self.flag("--upstream", url)
    }

    /// A flag with its value.
    pub(crate) fn flag(mut self, name: &str, value: impl AsRef<OsStr>) -> Builder {
        self.flags.extend([OsString::from(name), value.as_ref().to_owned()]);
        self
    }

    /// A flag without a value.
    pub(crate) fn switch(mut self, name: &str) -> Builder {
        self.flags.push(name.into());
        self
    }

    /// A flag whose value is a file with these contents.
    pub(crate) fn file(self, flag: &str, name: &str, contents: impl AsRef<[u8]>) -> Builder {
        let path = self.folder.write(name, contents);
        self.flag(flag, path)
    }

    /// A variable of the environment.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Builder {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The limits of open files that it finds.
    pub(crate) fn open_files(mut self, soft: libc::rlim_t, hard: libc::rlim_t) -> Builder {
        self.open_files = Some([soft, hard]);
        self
    }

    /// A folder that it finds as `/sys/fs/cgroup`, as a container finds its own there.
    pub(crate) fn cgroup(mut self, folder: &Path) -> Builder {
        self.cgroup = Some(folder.to_owned());
        self
    }

    /// Another program than the one of this build, as the last argument of a tool.
    pub(crate) fn under(mut self, tool: &[&str], program: &Path) -> Builder {
        self.line = tool.iter().map(OsString::from).chain([program.into()]).collect();
        self
    }

    /// Has the new process do this before it becomes the program. It may make system calls, and allocate nothing.
    pub(crate) fn before(
        mut self,
        act: impl FnMut() -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Builder {
        self.before.push(Box::new(act));
        self
    }

    /// The folder, before the start.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts it and waits until it listens.
    pub(crate) fn start(self) -> Guard {
        match self.try_start() {
            Ok(guard) => guard,
            Err(ended) => panic!("it did not start: exit code {}\n{}", ended.code, ended.stderr),
        }
    }

    /// Starts it with a level at which it does not say where it listens, and waits until it does.
    pub(crate) fn start_quietly(self, level: &str) -> Guard {
        let ports = [0; 2].map(|_| std::net::TcpListener::bind("127.0.0.1:0").expect("a free port"));
        let [listen, admin] = ports.map(|port| port.local_addr().expect("bound"));
        let builder = self.flag("--log-level", level).flag("--listen", listen.to_string());
        let (child, folder, out, errors) = builder.flag("--admin-listen", admin.to_string()).spawn();
        let begun = Instant::now();
        while TcpStream::connect(admin).is_err() || TcpStream::connect(listen).is_err() {
            assert!(begun.elapsed() < PATIENCE, "it does not listen");
            thread::yield_now();
        }
        Guard { child: Mutex::new(child), folder, out, errors, listen, admin }
    }

    /// Starts it with `--tls-wait` and without a certificate, and waits until it says that it waits.
    pub(crate) fn start_waiting(self) -> Guard {
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let listen = port.local_addr().expect("bound");
        drop(port);
        let builder = self.switch("--tls-wait").flag("--listen", listen.to_string());
        let (child, folder, out, errors) = builder.spawn();
        let waiting = out.wait(|lines| {
            let found = lines.iter().find(|line| line.contains("Waiting for the certificate"))?;
            serde_json::from_str::<Value>(found).ok()
        });
        let line = waiting.unwrap_or_else(|| panic!("it does not wait: {}", errors.so_far().join("\n")));
        let admin = line["admin.addr"].as_str().and_then(|text| text.parse().ok()).expect("an address");
        Guard { child: Mutex::new(child), folder, out, errors, listen, admin }
    }

    fn spawn(self) -> (Child, Folder, Arc<Lines>, Arc<Lines>) {
        let Builder { folder, policy, flags, environment, open_files, cgroup, line, before } = self;
        let given = |name: &str| flags.iter().any(|flag| flag == name);
        let mut command = match line.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest);
                command
            }
            None => Command::new(env!("CARGO_BIN_EXE_callback-guard")),
        };
        command.arg("proxy");
        let self_signed = given("--tls-self-signed");
        let mut defaults = |name: &str, value: PathBuf| {
            let not_wanted = self_signed && name.starts_with("--tls-");
            if !not_wanted && !given(name) {
                command.arg(name).arg(value);
            }
        };
        let issued = Authority::common().server();
        defaults("--tls-cert", folder.write("cert.pem", issued.cert));
        defaults("--tls-key", folder.write("key.pem", issued.key));
        defaults("--policy-file", folder.write("policy.yaml", policy));
        defaults("--listen", "127.0.0.1:0".into());
        defaults("--admin-listen", "127.0.0.1:0".into());
        command.args(&flags);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CALLBACK_GUARD_") {
                command.env_remove(name);
            }
        }
        command.envs(environment);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some([soft, hard]) = open_files {
            let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
            // SAFETY: one system call, which reads the limit that was moved into the closure.
            unsafe {
                command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                });
            }
        }
        if let Some(cgroup) = cgroup {
            mount_cgroup(&mut command, &cgroup);
        }
        for act in before {
            // SAFETY: by its contract it makes system calls alone.
            unsafe { command.pre_exec(act) };
        }
        let mut child = command.spawn().expect("the binary starts");
        let out = Lines::of(child.stdout.take().expect("a pipe"));
        let errors = Lines::of(child.stderr.take().expect("a pipe"));
        (child, folder, out, errors)
    }

    /// Starts it, and gives what it said if it ended instead.
    pub(crate) fn try_start(self) -> Result<Guard, Ended> {
        let (mut child, folder, out, errors) = self.spawn();
        let listening = out.wait(|lines| {
            let parsed = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let mut parsed = parsed.filter(|line| line["message"] == "Listening");
            parsed.next().or_else(|| lines.iter().find_map(|line| text_line(line)))
        });
        let Some(line) = listening else {
            let _ = child.kill();
            let code = child.wait().expect("a child can be waited for").code().unwrap_or(-1);
            errors.wait_for_end();
            let stderr = errors.so_far().join("\n");
            return Err(Ended { code, stderr });
        };
        let address = |key: &str| line[key].as_str().and_then(|text| text.parse().ok()).expect("an address");
        let (listen, admin) = (address("listen.addr"), address("admin.addr"));
        Ok(Guard { child: Mutex::new(child), folder, out, errors, listen, admin })
    }
}

/// Has a program find this folder as `/sys/fs/cgroup`, in a mount namespace of its own.
fn mount_cgroup(command: &mut Command, folder: &Path) {
    let path = |path: &Path| CString::new(path.as_os_str().as_bytes()).expect("a path without a zero");
    let (source, target, root) = (path(folder), c"/sys/fs/cgroup", c"/");
    // SAFETY: a system call without arguments. Without root, a user namespace is what allows the mounts.
    let flags = match unsafe { libc::geteuid() } {
        0 => libc::CLONE_NEWNS,
        _ => libc::CLONE_NEWNS | libc::CLONE_NEWUSER,
    };
    let mount = move |source: &CStr, target: &CStr, flags| {
        // SAFETY: both strings live until the call returns; the others may be null.
        match unsafe {
            libc::mount(source.as_ptr(), target.as_ptr(), std::ptr::null(), flags, std::ptr::null())
        } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: system calls alone, on strings that were moved into the closure.
    unsafe {
        command.pre_exec(move || {
            if libc::unshare(flags) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            mount(root, root, libc::MS_REC | libc::MS_PRIVATE)?;
            mount(&source, target, libc::MS_BIND)
        });
    }
}

/// Tries what [`Builder::cgroup`] does.
pub(crate) fn may_mount(folder: &Path) -> std::io::Result<()> {
    let mut command = Command::new("true");
    mount_cgroup(&mut command, folder);
    command.status().map(|_| ())
}

/// The "Listening" line of `--log-format text`, as JSON.
fn text_line(line: &str) -> Option<Value> {
    let (_, rest) = line.split_once("Listening ")?;
    let pairs = rest.split(' ').filter_map(|pair| pair.split_once('='));
    Some(pairs.map(|(key, value)| (key.to_owned(), Value::from(value))).collect())
}

fn is_decision(line: &str) -> bool {
    line.contains("\"message\":\"Callback answered\"")
}

fn decisions(lines: &[String]) -> Vec<Value> {
    let lines = lines.iter().filter(|line| is_decision(line));
    lines.map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
}

/// Sends a request without a body over a connection of its own: status and body, which is text.
pub(crate) fn ask(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("the port accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time that is not 0");
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("the port reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the port answers");
    let answer = String::from_utf8(answer).expect("pages are text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, body.to_owned())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
