//! `--tls-wait`: a guard whose certificate is not there yet.

use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::support::{App, Authority, Call, Caller, Guard};

const COMMAND: &str = "callbackBeforeSendSingleMsgCommand";

/// As the kubelet does it: a folder of its own for each version, and one symlink that is swapped.
fn mount(folder: &Path, version: u32, cert: &str, key: &str) {
    let new = folder.join(format!("..version-{version}"));
    std::fs::create_dir_all(&new).expect("a folder");
    std::fs::write(new.join("tls.crt"), cert).expect("a file");
    std::fs::write(new.join("tls.key"), key).expect("a file");
    symlink(new.file_name().expect("a name"), folder.join("..data_tmp")).expect("a symlink");
    std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).expect("a rename");
    for name in ["tls.crt", "tls.key"] {
        let _ = symlink(format!("..data/{name}"), folder.join(name));
    }
}

fn readiness(guard: &Guard) -> (u16, String) {
    let (status, text) = guard.admin("/readyz");
    assert_eq!(guard.admin("/livez").0, 200);
    (status, text)
}

#[tokio::test]
async fn without_its_files_it_waits_and_says_for_what_and_listens_when_they_are_there() {
    let app = App::allowing();
    let builder = Guard::with("").upstream(&app);
    let folder = builder.folder().join("secret");
    std::fs::create_dir(&folder).expect("a folder");
    let builder =
        builder.flag("--tls-cert", folder.join("tls.crt")).flag("--tls-key", folder.join("tls.key"));
    let guard = builder.start_waiting();
    let line = guard.wait_for_log(|line| line.contains("Waiting for the certificate"));
    assert!(line.contains("--tls-cert: ") && line.contains("tls.crt: no such file"), "{line}");
    let (status, text) = readiness(&guard);
    assert!(status == 503 && text.starts_with("not ready: tls (--tls-cert: "), "{text}");
    assert!(TcpStream::connect(guard.listen()).is_err(), "callers are refused and not kept waiting");
    assert!(guard.admin("/").1.contains("none yet"));

    let issued = Authority::common().server();
    mount(&folder, 1, &issued.cert, "no key");
    let of_the_key =
        |line: &str| line.contains("\"--tls-key: ") && line.contains("Waiting for the certificate");
    guard.wait_for_log(of_the_key);
    let (status, text) = readiness(&guard);
    assert!(status == 503 && text.contains("tls (--tls-key: ") && !text.contains("--tls-cert"), "{text}");

    mount(&folder, 2, &issued.cert, &issued.key);
    guard.wait_for_log(|line| line.contains("\"Listening\""));
    assert_eq!(Caller::h2(&guard).await.send(&Call::new(COMMAND)).await.told(), "allow upstream -");
    assert_eq!(readiness(&guard), (200, "ok\n".to_owned()));
    let told = |line: &&String| line.contains("Waiting for the certificate");
    assert_eq!(guard.log_lines().iter().filter(told).count(), 2, "each reason once");

    // From here on it is as if it had been there at the start.
    mount(&folder, 3, &issued.cert, "no key");
    guard.wait_for_log(|line| line.contains("The new certificate is refused"));
    assert_eq!(Caller::h2(&guard).await.send(&Call::new(COMMAND)).await.told(), "allow upstream -");
}

#[tokio::test]
async fn a_signal_ends_the_waiting_and_is_no_failure() {
    let builder = Guard::with("");
    let none = builder.folder().join("none");
    let guard = builder.flag("--tls-cert", &none).flag("--tls-key", &none).start_waiting();
    assert_eq!(guard.admin_post("/drain").0, 200);
    guard.terminate();
    assert_eq!(guard.wait_exit(), 0);
    guard.wait_for_log(|line| line.contains("there was no certificate to serve with"));
}

#[tokio::test]
async fn whoever_does_not_say_that_it_may_wait_fails_at_the_start() {
    for switch in [None, Some("--tls-wait=false")] {
        let builder = Guard::with("");
        let none = builder.folder().join("none");
        let builder = builder.flag("--tls-cert", &none).flag("--tls-key", &none);
        let builder = switch.into_iter().fold(builder, |builder, switch| builder.switch(switch));
        let Err(ended) = builder.try_start() else { panic!("it started without a certificate") };
        assert_eq!(ended.code, 1);
        assert!(ended.stderr.contains("--tls-cert: ") && ended.stderr.contains("no such file"), "{ended:?}");
    }
}

#[tokio::test]
async fn with_its_files_there_it_does_not_wait() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).switch("--tls-wait").start();
    assert!(!guard.log_lines().iter().any(|line| line.contains("Waiting")));
    assert_eq!(Caller::h1(&guard).await.send(&Call::new(COMMAND)).await.told(), "allow upstream -");
}
