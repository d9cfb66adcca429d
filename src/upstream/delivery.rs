//! Whether bytes that were written may have reached the app.
//!
//! An app may close a kept connection in the very moment in which the next callback is written to it. The write
//! succeeds, and nothing comes back. Sending the callback again would be wrong if the app had read it, and
//! failing it would be wrong if it had not. TCP knows. Every segment a peer sends acknowledges all that had
//! arrived by then, its FIN too. So where reading ends with the peer's FIN, the acknowledged count has not moved since
//! before the write, and the peer's kernel has answered the write with a reset (the connection is closed now, not
//! half-closed), the app had closed its socket before the bytes came, and they were thrown away unread.
//!
//! A reset with no FIN proves nothing (the app may have read a part, and its kernel may not have acknowledged it
//! yet), nor does a unix socket, whose buffer is the app's as soon as it is written. Those are failures.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `TCP_CLOSE` in Linux's `net/tcp_states.h`.
const STATE_CLOSED: u8 = 7;

/// Where `tcpi_state` and `tcpi_bytes_acked` stand in Linux's `struct tcp_info` (`uapi/linux/tcp.h`, kernel 4.1 and
/// later: the structure only ever grows at its end).
const STATE_AT: usize = 0;
const BYTES_ACKED_AT: usize = 120;

/// The state of a TCP connection as the kernel tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TcpInfo {
    state: u8,
    /// Bytes the peer's TCP has acknowledged, counted from the connection's start.
    pub(super) bytes_acked: u64,
}

impl TcpInfo {
    /// Asks the kernel; an error for a socket that is not TCP.
    pub(super) fn of(socket: BorrowedFd<'_>) -> io::Result<TcpInfo> {
        let mut info = [0_u8; 256];
        let mut length = info.len() as libc::socklen_t;
        // SAFETY: the descriptor is borrowed for the call, and the kernel writes at most `length` bytes to `info`.
        #[allow(unsafe_code, reason = "no crate in use offers the newer fields of TCP_INFO")]
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let Some(bytes_acked) = info[..length as usize].get(BYTES_ACKED_AT..BYTES_ACKED_AT + 8) else {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this kernel does not count acknowledged bytes",
            ));
        };
        let bytes_acked = u64::from_ne_bytes(bytes_acked.try_into().expect("a range of eight bytes"));
        Ok(TcpInfo { state: info[STATE_AT], bytes_acked })
    }

    /// Whether nothing beyond `before` reached the peer, now that reading has ended with its FIN.
    pub(super) fn proves_unread(self, before: u64) -> bool {
        self.state == STATE_CLOSED && self.bytes_acked <= before
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd as _;

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let near = TcpStream::connect(listener.local_addr().expect("bound")).expect("listening");
        (near, listener.accept().expect("connected").0)
    }

    /// Writes to a peer, lets it do something, and tells whether the bytes are proved to be unread.
    fn unread(peer: impl FnOnce(TcpStream, &mut dyn FnMut())) -> bool {
        let (mut near, far) = pair();
        let before = TcpInfo::of(near.as_fd()).expect("TCP").bytes_acked;
        let mut writer = near.try_clone().expect("a descriptor");
        peer(far, &mut || writer.write_all(b"a callback").expect("a write to a live or half-closed socket"));
        let end = near.read(&mut [0; 16]);
        matches!(end, Ok(0)) && TcpInfo::of(near.as_fd()).expect("TCP").proves_unread(before)
    }

    #[test]
    fn bytes_written_to_a_socket_that_was_closed_before_are_proved_unread() {
        assert!(unread(|far, write| {
            drop(far);
            write();
        }));
    }

    #[test]
    fn bytes_that_arrived_are_not_whether_they_were_read_or_not() {
        assert!(!unread(|mut far, write| {
            write();
            far.read_exact(&mut [0; 10]).expect("ten bytes");
        }));
        assert!(!unread(|mut far, write| {
            write();
            far.read_exact(&mut [0; 3]).expect("three bytes");
        }));
        assert!(!unread(|far, write| {
            write();
            drop(far);
        }));
    }

    #[test]
    fn a_peer_that_only_stopped_writing_may_still_read() {
        assert!(!unread(|far, write| {
            far.shutdown(std::net::Shutdown::Write).expect("connected");
            write();
            std::mem::forget(far);
        }));
    }
}
