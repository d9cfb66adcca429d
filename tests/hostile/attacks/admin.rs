//! The admin port: kubelet's probes are answered in front of any crowd.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::attacker::{open_or_closed, tcp, tcp_from};
use crate::good::KEPT;
use crate::lab::{Lab, Target, millis};
use crate::probe::{PROBE_TIMEOUT, page};
use crate::setup::Setup;

/// Between two probes: more often than kubelet asks.
const PROBE_PACE: Duration = Duration::from_millis(100);

/// Probes on a thread of their own, until then: how many, how many failed, and the slowest.
fn probes(admin: SocketAddr, until: Instant) -> std::thread::JoinHandle<(usize, Vec<String>, Duration)> {
    std::thread::spawn(move || {
        // As kubelet's process, they are not the attacker's.
        let _ = crate::priority::first_in(crate::priority::GOOD_CALLERS);
        let (mut count, mut failed, mut slowest) = (0, Vec::new(), Duration::ZERO);
        while Instant::now() < until {
            for path in ["/livez", "/readyz"] {
                count += 1;
                match page(admin, path, PROBE_TIMEOUT) {
                    Ok((took, _)) => slowest = slowest.max(took),
                    Err(error) => failed.push(format!("{path}: {error}")),
                }
            }
            crate::lab::pause(PROBE_PACE);
        }
        (count, failed, slowest)
    })
}

fn crowd(name: &'static str, seconds: u64, lab: &mut Lab, work: impl AsyncFnOnce(Target) -> String) {
    let mut complaint = None;
    lab.attack(name, &KEPT, seconds, async |target| {
        let probes = probes(target.admin, target.until);
        let fate = work(target).await;
        let (count, failed, slowest) = probes.join().expect("no panic");
        if let Some(first) = failed.first() {
            complaint = Some(format!("{name}: {} of {count} probes failed, as {first}", failed.len()));
        }
        format!("{fate}; {} of {count} probes failed, the slowest {}", failed.len(), millis(slowest))
    });
    if let Some(complaint) = complaint {
        lab.complain(complaint);
    }
}

/// Sockets that say nothing, opened again as they are closed, and 5,000 new ones a second.
pub(crate) fn silent() -> Lab {
    let mut lab = Lab::start(Setup::new());
    crowd("admin port: 1,000 silent sockets, up to 5,000 new ones a second", 5, &mut lab, async |target| {
        let mut open = VecDeque::<TcpStream>::new();
        let (begun, mut opened) = (Instant::now(), 0_u64);
        while Instant::now() < target.until {
            // At its limit the port may take its time; the attacker does not wait for it.
            let connect = tokio::time::timeout(Duration::from_millis(20), tcp(target.admin, None)).await;
            if let Ok(Ok(stream)) = connect {
                open.push_back(stream);
                opened += 1;
            }
            if open.len() > 1_000 {
                open.pop_front();
            }
            let due = begun + Duration::from_micros(200) * u32::try_from(opened).unwrap_or(u32::MAX);
            if opened > 1_000 && due > Instant::now() + Duration::from_millis(2) {
                tokio::time::sleep_until(due.into()).await;
            }
        }
        format!("{} a second opened", opened / begun.elapsed().as_secs().max(1))
    });
    lab
}

/// Sockets with requests whose answers nobody reads.
pub(crate) fn unread() -> Lab {
    let mut lab = Lab::start(Setup::new());
    crowd("admin port: 300 sockets that read no answer", 5, &mut lab, async |target| {
        let requests = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(20);
        let mut open = Vec::new();
        for _ in 0..300 {
            let Ok(Ok(mut stream)) =
                tokio::time::timeout(Duration::from_millis(20), tcp(target.admin, Some(4096))).await
            else {
                continue;
            };
            for _ in 0..100 {
                let write = tokio::time::timeout(Duration::from_millis(2), stream.write_all(&requests));
                if !matches!(write.await, Ok(Ok(()))) {
                    break;
                }
            }
            open.push(stream);
        }
        crate::attacker::rest(&target).await;
        open_or_closed(&open).to_string()
    });
    lab
}

/// The same from everywhere: each socket has an address of its own, and new ones come all the time.
pub(crate) fn from_everywhere() -> Lab {
    let mut lab = Lab::start(Setup::new());
    crowd(
        "admin port: 1,000 new sockets a second that read no answer, each from its own address",
        5,
        &mut lab,
        async |target| {
            let requests = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(50);
            let mut open = VecDeque::new();
            let (begun, mut opened) = (Instant::now(), 0_u32);
            while Instant::now() < target.until {
                let [_, high, middle, low] = opened.to_be_bytes();
                opened += 1;
                let source = Ipv4Addr::new(127, 20 + high, middle, low);
                let connect = tcp_from(source, target.admin, Some(2048));
                // In a full queue it is lost for a second.
                if let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(20), connect).await {
                    let _ = stream.try_write(&requests);
                    open.push_back(stream);
                }
                if open.len() > 4_000 {
                    open.pop_front();
                }
                let due = begun + Duration::from_millis(opened.into());
                if due > Instant::now() {
                    tokio::time::sleep_until(due.into()).await;
                }
            }
            let wanted = opened / u32::try_from(begun.elapsed().as_secs().max(1)).unwrap_or(1);
            format!("{} of {opened} opened, {wanted} a second", open.len())
        },
    );
    lab
}
