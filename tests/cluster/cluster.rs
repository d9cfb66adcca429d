//! A cluster, brought up by `tests/cluster/cluster` and talked to with kubectl, ctr and nsenter.

#![allow(dead_code, reason = "the harness is there before the last test that uses it")]

use std::fmt;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use serde_json::{Value, json};

/// Longest wait for anything that has to happen: an upper bound against hanging, never a measure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// How much of Kubernetes there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// etcd and kube-apiserver: webhooks, RBAC, watches, admission policies.
    A,
    /// A node as well, with kubelet, containerd, kube-proxy, the controllers and the scheduler.
    B,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::A => "A",
            Stage::B => "B",
        })
    }
}

/// A cluster that stands. One that this process has brought up ends with it, however it ends.
#[derive(Debug)]
pub(crate) struct Cluster {
    folder: PathBuf,
    supervisor: Option<Mutex<Supervisor>>,
}

/// The process that holds a cluster until its input ends.
#[derive(Debug)]
struct Supervisor {
    child: Child,
    input: Option<ChildStdin>,
    /// What it says, read by a thread.
    said: Arc<Mutex<Vec<String>>>,
}

/// A container as containerd has it: it can be ended without the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Container {
    pub(crate) id: String,
}

/// A namespace of one test, deleted at its end.
#[derive(Debug)]
pub(crate) struct Namespace<'a> {
    pub(crate) name: String,
    cluster: &'a Cluster,
}

/// Objects that are deleted when this is dropped, so also when the test fails.
#[derive(Debug)]
pub(crate) struct Applied<'a> {
    manifests: String,
    cluster: &'a Cluster,
}

pub(crate) fn script() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/cluster")
}

/// The command, with nothing of the developer's own clusters and proxies, and with Ctrl-C heard: whoever runs the tests in the
/// background of a shell has it ignored, which children inherit, and bash cannot undo.
pub(crate) fn clean(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    let unwanted =
        ["KUBECONFIG", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];
    for name in unwanted {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    // SAFETY: one system call between fork and exec, with a constant for a handler.
    unsafe {
        command.pre_exec(|| match libc::signal(libc::SIGINT, libc::SIG_DFL) {
            libc::SIG_ERR => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    command
}

/// Tests that compare times with a clock hold it to read, and one that keeps the whole machine busy holds it to write.
static BUSY: RwLock<()> = RwLock::new(());

/// Until it is dropped, no test keeps the whole machine busy.
pub(crate) fn undisturbed() -> RwLockReadGuard<'static, ()> {
    BUSY.read().unwrap_or_else(PoisonError::into_inner)
}

/// The right to keep the whole machine busy until it is dropped.
pub(crate) fn busy() -> RwLockWriteGuard<'static, ()> {
    BUSY.write().unwrap_or_else(PoisonError::into_inner)
}

/// Whether this machine can hold a cluster of this stage. In CI it has to.
pub(crate) fn can_hold(stage: Stage) -> bool {
    let check = clean(script()).args(["check", &stage.to_string()]).output().expect("bash is there");
    let lacks = String::from_utf8_lossy(&check.stdout).trim().to_owned();
    if check.status.success() {
        return true;
    }
    assert!(
        env::var_os("CI").is_none_or(|value| value != "true"),
        "CI has to hold a cluster of stage {stage}, and lacks:\n{lacks}"
    );
    eprintln!("left out, this machine cannot hold a cluster of stage {stage}:\n{lacks}");
    false
}

impl Cluster {
    /// The cluster of this stage that the tests of this process share: the one of `CALLBACK_GUARD_TEST_CLUSTER`, or one that is
    /// brought up now. `None` where the machine cannot hold one; then the test is left out.
    pub(crate) fn shared(stage: Stage) -> Option<&'static Cluster> {
        static A: OnceLock<Option<Cluster>> = OnceLock::new();
        static B: OnceLock<Option<Cluster>> = OnceLock::new();
        let place = match stage {
            Stage::A => &A,
            Stage::B => &B,
        };
        let get = || {
            if let Some(cluster) = Cluster::standing(stage) {
                return Some(cluster);
            }
            can_hold(stage).then(|| {
                let cluster = Cluster::start(stage);
                // Statics are not dropped: without this the process would end before its clusters have.
                // SAFETY: a function that takes and gives nothing, and does not unwind.
                unsafe { libc::atexit(end_shared) };
                cluster
            })
        };
        extern "C" fn end_shared() {
            for cluster in [&A, &B].into_iter().filter_map(|place| place.get()?.as_ref()) {
                cluster.end();
            }
        }
        place.get_or_init(get).as_ref()
    }

    /// The one that a developer keeps up, if it has this stage.
    fn standing(stage: Stage) -> Option<Cluster> {
        let folder = PathBuf::from(env::var_os("CALLBACK_GUARD_TEST_CLUSTER")?);
        assert!(
            folder.join("ready").exists(),
            "CALLBACK_GUARD_TEST_CLUSTER={} is not the folder of a cluster that stands: bring one up with \
             `tests/cluster/cluster up B`, or unset it",
            folder.display()
        );
        let has = fs::read_to_string(folder.join("stage")).expect("a cluster has a stage");
        let enough = has.trim() == "B" || stage == Stage::A;
        enough.then_some(Cluster { folder, supervisor: None })
    }

    /// One of its own, for tests that end it.
    pub(crate) fn start(stage: Stage) -> Cluster {
        match Cluster::try_start(stage, &[], |_| {}) {
            Ok(cluster) => cluster,
            Err(said) => panic!("no cluster of stage {stage}:\n{said}"),
        }
    }

    /// The same with variables, and with a look at each line that the supervisor says; its words if it fails.
    pub(crate) fn try_start(
        stage: Stage,
        variables: &[(&str, &str)],
        look: impl Fn(&Line<'_>) + Send + 'static,
    ) -> Result<Cluster, String> {
        let mut child = clean(script())
            .args(["up", &stage.to_string()])
            .env("CARGO_TARGET_DIR", target())
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("bash is there");
        let input = child.stdin.take();
        let (pid, errors) = (child.id(), BufReader::new(child.stderr.take().expect("piped")));
        let said = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&said);
        let reader = thread::spawn(move || {
            for line in errors.lines().map_while(Result::ok) {
                // A build takes minutes, and who waits wants to know: this is seen with --nocapture, and when it fails.
                eprintln!("{line}");
                look(&Line { text: &line, supervisor: pid });
                lock(&lines).push(line);
            }
        });
        // Bounded by the supervisor: it waits for nothing for ever, and the build of the programs ends.
        let mut folder = String::new();
        BufReader::new(child.stdout.take().expect("piped"))
            .read_line(&mut folder)
            .expect("a line or the end");
        if folder.is_empty() {
            let _ = child.wait();
            let _ = reader.join();
            return Err(lock(&said).join("\n"));
        }
        let supervisor = Some(Mutex::new(Supervisor { child, input, said }));
        Ok(Cluster { folder: PathBuf::from(folder.trim()), supervisor })
    }

    /// Its folder: `kubeconfig`, `log/NAME.log` of each component, `varlog/pods`.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its number: of the subnet, of the host's network device `callguardN` and of the cgroups `callback-guard-N`.
    pub(crate) fn number(&self) -> u8 {
        let name = self.folder.file_name().expect("a folder has a name").to_string_lossy();
        name.parse().expect("the folder is named by its number")
    }

    /// Where pods and the API server reach this machine; nothing else is on that network.
    pub(crate) fn host(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.number(), 1)
    }

    /// The node: node ports and the API server.
    pub(crate) fn node(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.number(), 2)
    }

    /// The URL of the API server.
    pub(crate) fn server(&self) -> String {
        format!("https://{}:6443", self.node())
    }

    /// The PEM file of the authority of all its certificates.
    pub(crate) fn ca(&self) -> PathBuf {
        self.folder.join("pki/ca.crt")
    }

    /// The process that holds it: the first of the outside that is in its network and mount namespace.
    pub(crate) fn holder(&self) -> u32 {
        self.noted("holder")
    }

    /// The process that brought it up.
    pub(crate) fn supervisor(&self) -> u32 {
        self.noted("supervisor")
    }

    fn noted(&self, name: &str) -> u32 {
        let text = fs::read_to_string(self.folder.join(name)).expect("the cluster stands");
        text.split(' ').next().and_then(|pid| pid.parse().ok()).expect("a number and a time")
    }

    /// Ends the supervisor's input and waits for its end, which is the cluster's. Nothing for one of another process.
    pub(crate) fn end(&self) {
        let Some(supervisor) = &self.supervisor else { return };
        let mut supervisor = lock(supervisor);
        supervisor.input = None;
        let _ = supervisor.child.wait();
    }

    /// Waits for the end of the supervisor, and gives its exit code; -1 after a signal.
    pub(crate) fn wait_for_supervisor(&self) -> i32 {
        let supervisor = self.supervisor.as_ref().expect("this process brought it up");
        lock(supervisor).child.wait().expect("a child can be waited for").code().unwrap_or(-1)
    }

    /// What the supervisor has said.
    pub(crate) fn said(&self) -> String {
        let supervisor = self.supervisor.as_ref().expect("this process brought it up");
        let said = Arc::clone(&lock(supervisor).said);
        lock(&said).join("\n")
    }

    // --- the API ---

    /// kubectl as the administrator, with these arguments: standard output. Panics with what it said.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> String {
        match self.try_kubectl(arguments) {
            Ok(output) => output,
            Err(said) => panic!("kubectl {arguments:?}: {said}"),
        }
    }

    /// The same, with standard error when it fails.
    pub(crate) fn try_kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        run(self.kubectl_command().args(arguments), None)
    }

    /// kubectl with another kubeconfig, one of `kubeconfig_of` say.
    pub(crate) fn kubectl_as(&self, kubeconfig: &Path, arguments: &[&str]) -> Result<String, String> {
        run(self.kubectl_command_as(kubeconfig).args(arguments), None)
    }

    /// kubectl as the administrator, to be given arguments.
    pub(crate) fn kubectl_command(&self) -> Command {
        self.kubectl_command_as(&self.folder.join("kubeconfig"))
    }

    fn kubectl_command_as(&self, kubeconfig: &Path) -> Command {
        self.kubectl_command_within(180, kubeconfig)
    }

    /// The same as the administrator, for a command that may take longer than others.
    pub(crate) fn kubectl_command_for(&self, seconds: u32) -> Command {
        self.kubectl_command_within(seconds, &self.folder.join("kubeconfig"))
    }

    fn kubectl_command_within(&self, seconds: u32, kubeconfig: &Path) -> Command {
        // Bounded, whatever it is asked to wait for.
        let mut command = clean("timeout");
        command
            .args([&seconds.to_string(), "kubectl"])
            .env("KUBECONFIG", kubeconfig)
            .env("PATH", self.path());
        command
    }

    /// kubectl without a bound, for a [`Process`](super::process::Process) that watches.
    pub(crate) fn endless_kubectl(&self, kubeconfig: &Path) -> Command {
        let mut command = clean("kubectl");
        command.env("KUBECONFIG", kubeconfig).env("PATH", self.path());
        command
    }

    /// Where the programs of this cluster are, and then those of the machine.
    pub(crate) fn path(&self) -> String {
        let path = fs::read_to_string(self.folder.join("path")).expect("the cluster stands");
        path.trim().to_owned()
    }

    /// `kubectl apply` of manifests, as YAML or JSON.
    pub(crate) fn apply(&self, manifests: &str) -> String {
        match self.try_apply(manifests, &[]) {
            Ok(output) => output,
            Err(said) => panic!("kubectl apply: {said}\n{manifests}"),
        }
    }

    /// The same with more arguments; standard error when it fails.
    pub(crate) fn try_apply(&self, manifests: &str, arguments: &[&str]) -> Result<String, String> {
        let mut command = self.kubectl_command();
        run(command.args(["apply", "-f", "-"]).args(arguments), Some(manifests))
    }

    /// The same for cluster-scoped objects of one test: they are deleted when the returned value is dropped.
    pub(crate) fn apply_until_dropped(&self, manifests: &str) -> Applied<'_> {
        // Before the first object exists: some may be there when applying fails.
        let applied = Applied { manifests: manifests.to_owned(), cluster: self };
        self.apply(manifests);
        applied
    }

    /// `kubectl get -o json`; an error says what the server said.
    pub(crate) fn get(&self, namespace: &str, what: &[&str]) -> Result<Value, String> {
        let arguments = [&["-n", namespace, "get", "-o", "json"], what].concat();
        let output = self.try_kubectl(&arguments)?;
        Ok(serde_json::from_str(&output).expect("kubectl writes JSON"))
    }

    /// The pods with a label, `app=shop` say, by name.
    pub(crate) fn pods(&self, namespace: &str, label: &str) -> Vec<Value> {
        let list = self.get(namespace, &["pods", "-l", label, "--sort-by=.metadata.name"]);
        list.expect("pods can be listed")["items"].as_array().cloned().expect("a list")
    }

    /// A fresh namespace with these labels (`pod-security.kubernetes.io/enforce=restricted` say), with its service account.
    pub(crate) fn namespace(&self, labels: &[&str]) -> Namespace<'_> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("test-{}-{number}", std::process::id());
        self.kubectl(&["create", "namespace", &name]);
        let namespace = Namespace { name, cluster: self };
        if !labels.is_empty() {
            let label = [&["label", "namespace", &namespace.name], labels].concat();
            self.kubectl(&label);
        }
        if self.folder.join("kubelet.json").exists() {
            // Its controller makes it; until then no pod is admitted.
            eventually("the namespace's service account", || {
                self.get(&namespace.name, &["serviceaccount", "default"]).ok()
            });
        } else {
            // Stage A has no controllers, and without it the API server refuses every pod.
            self.kubectl(&["-n", &namespace.name, "create", "serviceaccount", "default"]);
        }
        namespace
    }

    /// A token of a service account, as a pod would have it.
    pub(crate) fn token(&self, namespace: &str, account: &str) -> String {
        self.kubectl(&["-n", namespace, "create", "token", account]).trim().to_owned()
    }

    /// Writes a kubeconfig with this token into the cluster's folder, and gives its path.
    pub(crate) fn kubeconfig_of(&self, namespace: &str, token: &str) -> PathBuf {
        self.kubeconfig_at(&self.server(), &self.ca(), namespace, token)
    }

    /// The same for another way to the API server: its URL, and the PEM file of the authority of the certificate there.
    pub(crate) fn kubeconfig_at(&self, server: &str, ca: &Path, namespace: &str, token: &str) -> PathBuf {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(format!("kubeconfig-{}-{number}", std::process::id()));
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": server, "certificate-authority": ca}}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {
                "cluster": "test", "user": "test", "namespace": namespace}}],
        });
        let mut options = fs::OpenOptions::new();
        let file = options.create_new(true).write(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(config.to_string().as_bytes()))
            .expect("a file of the cluster");
        path
    }

    // --- components ---

    /// Ends a component, `kube-apiserver` say, with `TERM` (it finishes what is under way, for up to a minute) or `KILL`, and waits
    /// for its end.
    pub(crate) fn stop(&self, component: &str, signal: &str) {
        self.script(&["stop"], &[component, signal]);
    }

    /// Starts it again. Does not wait until it serves.
    pub(crate) fn start_again(&self, component: &str) {
        self.script(&["start"], &[component]);
    }

    /// Waits until the API server is ready.
    pub(crate) fn wait_for_api(&self) {
        eventually("the API server", || self.try_kubectl(&["get", "--raw", "/readyz"]).ok());
    }

    /// The last lines of a component's log.
    pub(crate) fn component_log(&self, component: &str) -> String {
        fs::read_to_string(self.folder.join(format!("log/{component}.log"))).unwrap_or_default()
    }

    fn script(&self, verb: &[&str], rest: &[&str]) -> String {
        let done = run(clean(script()).args(verb).arg(&self.folder).args(rest), None);
        done.unwrap_or_else(|said| panic!("cluster {verb:?} {rest:?}: {said}"))
    }

    /// A program of this machine in the cluster's network, where Services and pods can be reached; its process is this program's,
    /// so that a signal arrives.
    pub(crate) fn command_in_network(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = clean("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.holder())).arg("--").arg(program);
        command
    }

    /// A program inside: in the cluster's network, with its mounts and its processes (`ctr`, `iptables`, `kill`).
    pub(crate) fn command_inside(&self, program: &str) -> Command {
        let mut command = clean(script());
        command.arg("exec").arg(&self.folder).arg(program);
        command
    }

    // --- pods, without the API server ---

    /// Loads an image archive.
    pub(crate) fn import(&self, archive: &Path) {
        let file = fs::File::open(archive).unwrap_or_else(|error| panic!("{}: {error}", archive.display()));
        let mut ctr = self.command_inside("ctr");
        let done =
            ctr.args(["-n", "k8s.io", "images", "import", "-"]).stdin(file).output().expect("ctr runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    fn ctr(&self, arguments: &[&str]) -> String {
        let done = run(self.command_inside("ctr").args(["-n", "k8s.io"]).args(arguments), None);
        done.unwrap_or_else(|said| panic!("ctr {arguments:?}: {said}"))
    }

    /// The containers of a pod with this name that run now: one, or none between its end and its next start.
    pub(crate) fn containers(&self, namespace: &str, pod: &str, container: &str) -> Vec<Container> {
        let filter = format!(
            "labels.\"io.kubernetes.pod.namespace\"==\"{namespace}\",labels.\"io.kubernetes.pod.name\"==\"{pod}\",\
             labels.\"io.kubernetes.container.name\"==\"{container}\""
        );
        let tasks = self.ctr(&["tasks", "ls"]);
        let running: Vec<&str> = tasks
            .lines()
            .filter(|line| line.ends_with("RUNNING"))
            .filter_map(|line| line.split(' ').next())
            .collect();
        let found = self.ctr(&["containers", "ls", "-q", &filter]);
        let found = found.lines().filter(|id| running.contains(id));
        found.map(|id| Container { id: id.to_owned() }).collect()
    }

    /// Ends a container as a crash would: SIGKILL to its first process. kubelet starts another.
    pub(crate) fn kill_container(&self, container: &Container) {
        self.ctr(&["tasks", "kill", "-s", "SIGKILL", &container.id]);
    }

    /// What a container of a pod has written so far, its earlier starts included, each line with its time; also without the API
    /// server, and as long as the pod is not deleted.
    pub(crate) fn log(&self, namespace: &str, pod: &str, container: &str) -> Vec<Logged> {
        let prefix = format!("{namespace}_{pod}_");
        let mut files = Vec::new();
        for entry in fs::read_dir(self.folder.join("varlog/pods")).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                let folder = entry.path().join(container);
                files.extend(fs::read_dir(folder).into_iter().flatten().flatten().map(|file| file.path()));
            }
        }
        // 0.log, 1.log: the number of the restart.
        files.sort_by_key(|path| {
            path.file_stem().and_then(|stem| stem.to_string_lossy().parse::<u32>().ok()).unwrap_or(u32::MAX)
        });
        let texts = files.iter().filter_map(|file| fs::read_to_string(file).ok());
        texts.flat_map(|text| text.lines().filter_map(Logged::parse).collect::<Vec<_>>()).collect()
    }

    /// Follows what a container writes, to the end of the pod and beyond its deletion.
    pub(crate) fn follow(&self, namespace: &str, pod: &str, container: &str) -> Following {
        let mut command = self.endless_kubectl(&self.folder.join("kubeconfig"));
        command.args(["-n", namespace, "logs", "-f", "--timestamps", pod, "-c", container]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("kubectl runs");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let lines = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&lines);
        let reader = thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some((time, text)) = line.split_once(' ') {
                    lock(&shared).push(Logged { time: time.to_owned(), text: text.to_owned() });
                }
            }
        });
        Following { child, lines, reader: Some(reader) }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.end();
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let events = self.cluster.try_kubectl(&["-n", &self.name, "get", "events,pods", "-o", "wide"]);
            eprintln!("in namespace {}:\n{}", self.name, events.unwrap_or_else(|said| said));
        }
        // Not waited for: pods end in their own time, and the cluster's end ends them.
        let _ = self.cluster.try_kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
    }
}

impl Drop for Applied<'_> {
    fn drop(&mut self) {
        let mut command = self.cluster.kubectl_command();
        if let Err(error) =
            run(command.args(["delete", "--ignore-not-found", "-f", "-"]), Some(&self.manifests))
        {
            eprintln!("not deleted: {error}\n{}", self.manifests);
        }
    }
}

/// A line of the supervisor.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    pub(crate) text: &'a str,
    pub(crate) supervisor: u32,
}

/// A line of a container's log. Times are RFC 3339 in UTC with nanoseconds: their order is that of their letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Logged {
    pub(crate) time: String,
    pub(crate) text: String,
}

impl Logged {
    /// As containerd writes it: time, stream, whether the line is whole, text.
    fn parse(line: &str) -> Option<Logged> {
        let mut parts = line.splitn(4, ' ');
        let (time, _, _, text) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        Some(Logged { time: time.to_owned(), text: text.to_owned() })
    }
}

/// A container's log that is being followed.
#[derive(Debug)]
pub(crate) struct Following {
    child: Child,
    lines: Arc<Mutex<Vec<Logged>>>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Following {
    /// So far.
    pub(crate) fn lines(&self) -> Vec<Logged> {
        lock(&self.lines).clone()
    }

    /// Waits for the end of the container, and gives everything.
    pub(crate) fn wait_for_end(mut self) -> Vec<Logged> {
        let reader = self.reader.take().expect("taken once");
        eventually("the end of a container", || reader.is_finished().then_some(()));
        self.lines()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where cargo puts what it builds, also for the commands that tests call.
pub(crate) fn target() -> PathBuf {
    let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
    tmp.parent().expect("it is below the target folder").to_owned()
}

/// Asks again and again until there is something, with a breath in between for those who make it.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "still waiting for {what}");
        #[allow(clippy::disallowed_methods, reason = "a breath between two looks at another process")]
        thread::sleep(Duration::from_millis(50));
    }
}

/// Runs a command to its end: its standard output, or its standard error when it fails.
pub(crate) fn run(command: &mut Command, input: Option<&str>) -> Result<String, String> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    if input.is_some() {
        command.stdin(Stdio::piped());
    }
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    if let (Some(text), Some(mut pipe)) = (input, child.stdin.take()) {
        // One that ends early says why on standard error.
        let _ = pipe.write_all(text.as_bytes());
    }
    let mut errors = child.stderr.take().expect("piped");
    let errors = thread::spawn(move || {
        let mut text = String::new();
        let _ = errors.read_to_string(&mut text);
        text
    });
    let done = child.wait_with_output().expect("a child can be waited for");
    let errors = errors.join().expect("it only reads");
    let output = String::from_utf8_lossy(&done.stdout).into_owned();
    if done.status.success() { Ok(output) } else { Err(format!("{}: {errors}{output}", done.status)) }
}

/// Sends a signal to a child of this process that was not waited for yet, so that its number is its own.
pub(crate) fn signal(child: u32, signal: i32) {
    let pid = libc::pid_t::try_from(child).expect("a pid");
    // SAFETY: no memory is involved.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "{}", std::io::Error::last_os_error());
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
