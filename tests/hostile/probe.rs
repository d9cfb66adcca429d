//! What the guard's process and its admin port say.

use std::fs;
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::lab::millis;

/// kubelet's patience with a probe, as `inject` sets it.
pub(crate) const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// A field of `/proc/PID/status`, in bytes.
pub(crate) fn status(pid: u32, field: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// GET of a page of the admin port within this time, as kubelet asks: how long it took, and the page.
pub(crate) fn page(admin: SocketAddr, path: &str, within: Duration) -> Result<(Duration, String), String> {
    use std::io::Read as _;
    let begun = Instant::now();
    let ask = || -> io::Result<String> {
        let left = || Some(within.saturating_sub(begun.elapsed()).max(Duration::from_millis(1)));
        let mut stream = TcpStream::connect_timeout(&admin, within)?;
        stream.set_read_timeout(left())?;
        stream.write_all(
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes(),
        )?;
        let (mut answer, mut part) = (Vec::new(), [0; 1 << 14]);
        while let count @ 1.. = stream.read(&mut part)? {
            answer.extend_from_slice(&part[..count]);
            stream.set_read_timeout(left())?;
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = ask().map_err(|error| format!("{error} after {}", millis(begun.elapsed())))?;
    let took = begun.elapsed();
    if !answer.starts_with("HTTP/1.1 200 ") || took > within {
        let line = answer.lines().next().unwrap_or_default();
        return Err(format!("{line:?} after {}", millis(took)));
    }
    Ok((took, answer))
}

/// A metric of the admin port.
pub(crate) fn metric(admin: SocketAddr, series: &str) -> Result<f64, String> {
    let (_, page) = page(admin, "/metrics", PROBE_TIMEOUT)?;
    let values = page.lines().filter_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    values.map(|value| value.parse::<f64>().map_err(|error| error.to_string())).sum()
}
