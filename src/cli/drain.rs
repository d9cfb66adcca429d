//! `drain`: one request to the admin port of the proxy beside it. Returns at once, so that a preStop hook does too.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::args::Drain;

/// The proxy is on loopback and answers in microseconds, or not at all.
const PATIENCE: Duration = Duration::from_secs(2);

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
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&admin, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(
            b"POST /drain HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        )?;
        let mut answer = String::new();
        stream.take(4096).read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|error| format!("{error} (is --admin-listen the proxy's?)"))?;
    let status = answer.lines().next().unwrap_or_default();
    if status.starts_with("HTTP/1.1 200 ") { Ok(()) } else { Err(format!("it answered {status:?}")) }
}
