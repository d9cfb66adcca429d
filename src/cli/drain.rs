//! `drain`: one request to the admin port of the proxy beside it. Returns at once, so that a preStop hook does too.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::args::Drain;

/// The proxy is on loopback and answers in microseconds, or not at all.
const PATIENCE: Duration = Duration::from_secs(2);

/// A status line is shorter.
const ANSWER_LIMIT_BYTES: usize = 4096;

/// Tells the proxy, and gives the exit code.
pub fn run(config: &Drain) -> u8 {
    match tell(config.admin) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("the proxy at {} was not told that the pod is ending: {error}", config.admin);
            super::PROBLEM
        }
    }
}

fn tell(admin: SocketAddr) -> Result<(), String> {
    let answer = ask(admin).map_err(|error| {
        // What a read says at the end of its time has two names.
        let late = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
        let what =
            if late { format!("no answer within {} s", PATIENCE.as_secs()) } else { error.to_string() };
        format!("{what} (is --admin-listen the proxy's?)")
    })?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.lines().next().unwrap_or_default();
    if status.starts_with("HTTP/1.1 200 ") { Ok(()) } else { Err(format!("it answered {status:?}")) }
}

/// The first line of the answer, whatever it is, in no more than the whole patience.
fn ask(admin: SocketAddr) -> io::Result<Vec<u8>> {
    let until = Instant::now() + PATIENCE;
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE)?;
    stream.write_all(
        b"POST /drain HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    )?;
    let mut answer = Vec::new();
    let mut part = [0; 512];
    while !answer.contains(&b'\n') && answer.len() < ANSWER_LIMIT_BYTES {
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut part)? {
            0 => break,
            read => answer.extend_from_slice(&part[..read]),
        }
    }
    Ok(answer)
}
