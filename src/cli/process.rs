//! What every long-running subcommand has: a runtime of one thread, signals, a listener with its way back to IPv4, and a word
//! about panics.

use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::error;

use super::args;
use crate::server::Bound;

/// A runtime of this thread.
pub(super) fn local_runtime() -> LocalRuntime {
    Builder::new_current_thread()
        .enable_all()
        .on_thread_park(crate::turns::rest)
        .build_local(LocalOptions::default())
        .expect("a process that cannot make a runtime cannot serve")
}

/// The listener of one socket, and the signals, within a runtime.
pub(super) fn open(bound: Bound) -> std::io::Result<(TcpListener, Signals)> {
    Ok((TcpListener::from_std(bound.into_listener()?)?, Signals::new()?))
}

/// SIGTERM, and SIGINT for people.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Takes the address that a flag names, or this port on every address.
pub(super) fn bind(
    flag: &str,
    wanted: Option<SocketAddr>,
    port: u16,
    take: fn(SocketAddr) -> std::io::Result<Bound>,
) -> Result<Bound, String> {
    let named = |address: SocketAddr| {
        take(address).map_err(|error| format!("{flag}: {address} cannot be listened on: {error}"))
    };
    let port = wanted.map_or(port, |address| address.port());
    let [both, v4] = args::any(port);
    match wanted {
        // `[::]` means every address, where there is no IPv6 too: the sidecar gets its port in this way.
        Some(address) if address != both => named(address),
        Some(_) | None => take(both).or_else(|_| named(v4)),
    }
}

/// A panic is a bug of ours: it is logged with its place, not with its text, which may hold content. Then `after` is called.
pub(super) fn report_panics(after: impl Fn() + Send + Sync + 'static) {
    std::panic::set_hook(Box::new(move |panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        error!(panic.place = place, "A bug: please report it");
        after();
    }));
}
