//! The controller's clock is wrong: a day ahead, a day behind, and back.

use super::super::clock::Clock;
use super::super::cluster::eventually;
use super::super::forward::Forward;
use super::super::replica::Replica;
use super::{Installation, OWN, SERVED, openssl};

/// A certificate of half a day: a day decides about it. A CA has its whole time.
const LIFETIMES: [&str; 3] = ["--certificate-lifetime=12h", "--ca-lifetime=8760h", "--lease-duration=3s"];

const SIGNED: &str = "callback_guard_controller_renewals_total{result=\"succeeded\"}";

/// Whether a certificate is valid by this machine's clock, and so by the clocks of those who are served.
fn is_valid(pem: &str) -> bool {
    let begins = openssl(pem, &["-noout", "-startdate"]).expect("a certificate");
    let begins = begins.trim_start_matches("notBefore=").to_owned();
    let mut date = super::super::cluster::clean("date");
    let seconds = super::super::cluster::run(date.args(["-d", &begins, "+%s"]), None).expect("a date");
    let begins: u64 = seconds.trim().parse().expect("a number");
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    begins <= now && openssl(pem, &["-noout", "-checkend", "0"]).is_ok()
}

/// Waits until the Lease was renewed some times more: so often the controller has looked at its clock.
fn some_looks(installed: &Installation) {
    let renewed = || {
        let lease = installed.cluster.get(OWN, &["lease", "callback-guard-controller"]).expect("it leads");
        lease["metadata"]["resourceVersion"].as_str().expect("a version").to_owned()
    };
    for _ in 0..4 {
        let before = renewed();
        eventually("a renewal of the Lease", || (renewed() != before).then_some(()));
    }
}

#[test]
fn a_clock_a_day_ahead_and_back_serves_nothing_invalid_and_renews_once() {
    let Some(installed) = Installation::new() else { return };
    let clock = Clock::new("+0");
    let mut command = installed.command("one", &installed.kubeconfig(), &LIFETIMES);
    let replica = Replica::run({
        clock.apply(&mut command);
        command
    });
    let first = installed.certificate(SERVED, None);
    assert!(is_valid(&first));
    let bundle = installed.bundle();
    eventually("the first count", || (replica.metric(SIGNED) == Some(2)).then_some(()));

    clock.shift("+1d");
    let second = installed.certificate(SERVED, Some(&first));
    assert!(is_valid(&second), "signed by a clock that is ahead, it is valid for everybody else");
    some_looks(&installed);
    assert_eq!(replica.metric(SIGNED), Some(3), "once");

    clock.shift("+0");
    some_looks(&installed);
    assert_eq!(replica.metric(SIGNED), Some(3), "nothing has to be signed again");
    assert_eq!(installed.certificate(SERVED, None), second);
    assert_eq!(installed.bundle(), bundle, "and nobody has to trust anything else");
}

#[test]
fn a_clock_a_day_behind_renews_in_time_by_the_api_servers_clock() {
    let Some(installed) = Installation::new() else { return };
    let token = installed.cluster.token(OWN, "callback-guard-controller");
    // The API server's own certificate is of today, which a clock of yesterday does not accept.
    let way = Forward::terminating(&installed.cluster);
    let kubeconfig = way.kubeconfig(&installed.cluster, OWN, &token);
    let clock = Clock::new("-1d");
    let lifetimes = ["--certificate-lifetime=20s", "--ca-lifetime=1h", "--lease-duration=3s"];
    let mut command = installed.command("one", &kubeconfig, &lifetimes);
    let replica = Replica::run({
        clock.apply(&mut command);
        command
    });
    let mut certificate = installed.certificate(SERVED, None);
    for _ in 0..3 {
        assert!(is_valid(&certificate), "nothing is served past its end");
        certificate = installed.certificate(SERVED, Some(&certificate));
    }
    assert!(is_valid(&certificate));
    clock.shift("+0");
    let next = installed.certificate(SERVED, Some(&certificate));
    assert!(is_valid(&next));
    assert!(
        replica.metric(SIGNED).is_some_and(|signed| signed <= 7),
        "no loop: {:?}",
        replica.metric(SIGNED)
    );
}
