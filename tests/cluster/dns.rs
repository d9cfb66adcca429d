//! A name server that knows one name.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Ends when it is dropped.
#[derive(Debug)]
pub(crate) struct NameServer {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    /// On port 53 of this address. Every other name does not exist.
    pub(crate) fn start(on: Ipv4Addr, name: &str, address: Ipv4Addr) -> NameServer {
        let socket = UdpSocket::bind(SocketAddr::from((on, 53))).expect("the port is free on this network");
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a time that is not 0");
        let ended = Arc::new(AtomicBool::new(false));
        let (end, name) = (Arc::clone(&ended), name.to_owned());
        let thread = thread::spawn(move || {
            let mut query = [0; 512];
            while !end.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut query) else { continue };
                if let Some(answer) = answer(&query[..length], &name, address) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        NameServer { ended, thread: Some(thread) }
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// RFC 1035: a head of 12 bytes, the question, and for this name's A record the answer.
fn answer(query: &[u8], name: &str, address: Ipv4Addr) -> Option<Vec<u8>> {
    let mut labels = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).into_owned());
        at += length;
    }
    let question = query.get(12..at + 4)?;
    let known = labels.join(".") == name;
    // Type A; for another type of a name that exists there is an empty answer.
    let has_answer = known && question[question.len() - 4..question.len() - 2] == [0, 1];
    let mut answer = query.get(..2)?.to_vec();
    answer.extend([0x85, if known { 0x80 } else { 0x83 }, 0, 1, 0, u8::from(has_answer), 0, 0, 0, 0]);
    answer.extend(question);
    if has_answer {
        // The name is the one at byte 12; type A, class IN, 1 s, four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}
