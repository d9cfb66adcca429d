//! Lines that anybody causes.

use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::attacker::tcp;
use crate::good::KEPT;
use crate::lab::Lab;
use crate::setup::Setup;

/// Twenty bytes that are no TLS, on as many sockets as can be opened.
pub(crate) fn garbage() -> Lab {
    /// One line a second for each reason, and there are few of them.
    const MOST_A_SECOND: f64 = 10.0;
    let mut lab = Lab::start(Setup::new());
    let about_others = |lab: &Lab| {
        let lines = lab.guard().log_lines();
        lines.iter().filter(|line| !line.contains("\"message\":\"Callback answered\"")).count()
    };
    let before = about_others(&lab);
    let begun = Instant::now();
    let mut opened = 0;
    lab.attack("connections of 20 bytes of garbage", &KEPT, 4, async |target| {
        let begun = Instant::now();
        while Instant::now() < target.until {
            let all = join_all((0..100).map(|_| async {
                let mut stream = tcp(target.listen, None).await.ok()?;
                stream.write_all(&[0x99; 20]).await.ok()?;
                let mut answer = Vec::new();
                let _ = tokio::time::timeout(Duration::from_secs(1), stream.read_to_end(&mut answer)).await;
                Some(())
            }));
            opened += all.await.into_iter().flatten().count();
        }
        format!("{:.0} a second", opened as f64 / begun.elapsed().as_secs_f64())
    });
    let lines = about_others(&lab) - before;
    let a_second = lines as f64 / begun.elapsed().as_secs_f64();
    println!("{opened} connections of garbage made {lines} lines, {a_second:.1} a second");
    if a_second > MOST_A_SECOND || lines == 0 {
        lab.complain(format!(
            "{opened} connections made {lines} lines, {a_second:.1} a second; wanted are one to {MOST_A_SECOND}"
        ));
    }
    lab
}
