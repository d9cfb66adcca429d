//! Opens the socket of a new connection to the app.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};

use super::stream::Stream;
use crate::descriptors;

/// How long to wait for room in the queue of a unix socket.
const FULL_QUEUE: Duration = Duration::from_millis(2);

/// Where the app is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An address, no look-up needed.
    Ip(SocketAddr),
    /// A port on 127.0.0.1 or on [::1]. Neither is looked up: what `/etc/hosts` says of localhost is of no consequence.
    Loopback(u16),
    /// A name and a port, looked up at each new connection.
    Name(String, u16),
    /// A unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Ip(address) => write!(out, "http://{address}"),
            Address::Loopback(port) => write!(out, "http://localhost:{port}"),
            Address::Name(host, port) => write!(out, "http://{host}:{port}"),
            Address::Unix(path) => write!(out, "unix:{}", path.display()),
        }
    }
}

/// Dials the app's address, for one worker.
#[derive(Debug)]
pub(super) struct Dialer {
    pub(super) address: Address,
    /// Both loopback addresses, the one that accepted last in front.
    loopback: Cell<[IpAddr; 2]>,
}

impl Dialer {
    pub(super) fn new(address: Address) -> Dialer {
        let loopback = Cell::new([Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        Dialer { address, loopback }
    }

    /// Connects. Dropping the future closes the socket.
    pub(super) async fn dial(&self) -> io::Result<Stream> {
        let stream = self.connect().await?;
        let last = match &stream {
            Stream::Tcp(stream) => descriptors::is_set_aside(stream),
            Stream::Unix(stream) => descriptors::is_set_aside(stream),
        };
        if last { Err(io::Error::from_raw_os_error(libc::EMFILE)) } else { Ok(stream) }
    }

    async fn connect(&self) -> io::Result<Stream> {
        Ok(match &self.address {
            Address::Ip(address) => Stream::Tcp(TcpStream::connect(address).await?),
            Address::Loopback(port) => Stream::Tcp(self.dial_loopback(*port).await?),
            Address::Name(host, port) => Stream::Tcp(TcpStream::connect((host.as_str(), *port)).await?),
            Address::Unix(path) => loop {
                match UnixStream::connect(path).await {
                    // Its queue is full, which TCP would wait for. Nothing was sent; the deadline ends it.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        tokio::time::sleep(FULL_QUEUE).await
                    }
                    connected => break Stream::Unix(connected?),
                }
            },
        })
    }

    /// One address after the other: the kernel refuses a loopback port at once, so there is nothing to gain from a race.
    async fn dial_loopback(&self, port: u16) -> io::Result<TcpStream> {
        let [first, second] = self.loopback.get();
        let failed = match TcpStream::connect((first, port)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        match TcpStream::connect((second, port)).await {
            Ok(stream) => {
                self.loopback.set([second, first]);
                Ok(stream)
            }
            Err(error) => Err(more_serious([(first, failed), (second, error)])),
        }
    }
}

/// Which error to report if both loopback addresses failed. A machine without IPv6 says nothing about the app, and the
/// app counts as absent only if nothing worse than a refusal happened.
fn more_serious([(first, failed), (second, error)]: [(IpAddr, io::Error); 2]) -> io::Error {
    let severity = |address: IpAddr, error: &io::Error| match error.raw_os_error() {
        // On IPv4 the same codes mean something else: no source port is free, for instance.
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::ENETUNREACH) if address.is_ipv6() => 0,
        Some(libc::ECONNREFUSED) => 1,
        Some(_) | None => 2,
    };
    if severity(second, &error) > severity(first, &failed) { error } else { failed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_reported_only_if_nothing_worse_happened() {
        let [v4, v6] = Dialer::new(Address::Loopback(1)).loopback.get();
        for (of_v4, of_v6, reported) in [
            (libc::ECONNREFUSED, libc::ECONNREFUSED, libc::ECONNREFUSED),
            (libc::ECONNREFUSED, libc::EAFNOSUPPORT, libc::ECONNREFUSED),
            (libc::ECONNREFUSED, libc::EADDRNOTAVAIL, libc::ECONNREFUSED),
            (libc::ECONNREFUSED, libc::ENETUNREACH, libc::ECONNREFUSED),
            (libc::ECONNREFUSED, libc::EPERM, libc::EPERM),
            (libc::EPERM, libc::ECONNREFUSED, libc::EPERM),
            (libc::EADDRNOTAVAIL, libc::ECONNREFUSED, libc::EADDRNOTAVAIL),
            (libc::EADDRNOTAVAIL, libc::EAFNOSUPPORT, libc::EADDRNOTAVAIL),
            (libc::EMFILE, libc::EMFILE, libc::EMFILE),
        ] {
            let error = io::Error::from_raw_os_error;
            for order in [[(v4, error(of_v4)), (v6, error(of_v6))], [(v6, error(of_v6)), (v4, error(of_v4))]]
            {
                let said = format!("{order:?}");
                assert_eq!(more_serious(order).raw_os_error(), Some(reported), "{said}");
            }
        }
    }
}
