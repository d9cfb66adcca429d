//! The threads that serve: one that accepts, and the workers.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot};
use tracing::error;

use super::{LAST_WRITES, wait};
use crate::cli::process::local_runtime;
use crate::drain::{self, Stage};
use crate::niceness;
use crate::proxy::{Proxy, Shared};
use crate::ready::Latch;
use crate::server::{Acceptor, Inbox, Limits, Pressure, Server, Workers, worker};
use crate::tls::Tls;

/// What the threads are made of.
pub(super) struct Threads {
    pub(super) shared: Arc<Shared>,
    pub(super) tls: Tls,
    pub(super) limits: Limits,
    pub(super) max_connections: usize,
    pub(super) pressure: Pressure,
    pub(super) drain: drain::Watch,
    /// Whether the accept loop goes on.
    pub(super) accepting: Arc<AtomicBool>,
}

impl Threads {
    /// Starts the workers. They serve when this returns, or have ended before.
    pub(super) async fn start_workers(&self, count: usize, dead: &mpsc::UnboundedSender<()>) -> Workers {
        let (workers, inboxes): (Vec<_>, Vec<_>) = (0..count).map(|_| worker()).unzip();
        let starting: Vec<_> =
            inboxes.into_iter().map(|inbox| self.start_worker(inbox, dead.clone())).collect();
        for started in starting {
            let _ = started.await;
        }
        Workers::new(workers)
    }

    fn start_worker(&self, inbox: Inbox, dead: mpsc::UnboundedSender<()>) -> oneshot::Receiver<()> {
        let (starting, started) = oneshot::channel();
        let (shared, drain, limits) = (Arc::clone(&self.shared), self.drain.clone(), self.limits.clone());
        start("worker", dead, move || {
            let metrics = Arc::clone(&shared.metrics);
            let accounts = shared.accounts.clone();
            let handler = Rc::new(Proxy::new(shared, drain.clone()));
            let (keeper, turns) = (Rc::clone(&handler), handler.turns());
            let (over, counted) = (drain.clone(), Arc::clone(&metrics));
            let server = Rc::new(Server { handler, limits, turns, accounts, metrics, drain });
            local_runtime().block_on(async {
                drop(starting);
                tokio::select! {
                    biased;
                    never = keeper.keep_time() => match never {},
                    () = server.serve(inbox) => {}
                    () = until_over(over, || counted.connections()) => {}
                }
            });
        });
        started
    }

    /// Starts the accepting thread. It accepts when this returns, or has ended before.
    pub(super) async fn start_accepting(
        &self,
        listener: std::net::TcpListener,
        workers: Workers,
        latch: Latch,
        dead: mpsc::UnboundedSender<()>,
    ) {
        let (starting, started) = oneshot::channel::<()>();
        let (metrics, drain) = (Arc::clone(&self.shared.metrics), self.drain.clone());
        let (tls, limits, pressure) = (self.tls.clone(), self.limits.clone(), self.pressure.clone());
        let max_connections = self.max_connections;
        let accepting = Arc::clone(&self.accepting);
        start("accept", dead, move || {
            // Where a worker wants the same core it gets nine tenths of it, and handshakes go on with the rest. A system that
            // refuses costs time alone.
            let _ = niceness::step_back();
            let (over, counted) = (drain.clone(), Arc::clone(&metrics));
            let acceptor =
                Rc::new(Acceptor { tls, limits, max_connections, pressure, metrics, drain, workers });
            // A task here may compute for milliseconds. So sockets and timers are looked at after each, not after 61.
            let mut builder = Builder::new_current_thread();
            let runtime = builder.enable_all().event_interval(1).build_local(LocalOptions::default());
            let runtime = runtime.expect("a process that cannot make a runtime cannot serve");
            runtime.block_on(async {
                drop((latch, starting));
                if let Err(error) = acceptor.run(listener).await {
                    error!(%error, "Connections cannot be accepted");
                    return;
                }
                accepting.store(false, Ordering::Release);
                // Handshakes go on.
                until_over(over, || counted.connections()).await;
            });
        });
        let _ = started.await;
    }
}

/// Waits until the end of the process has come, and what is open is closed.
async fn until_over(mut drain: drain::Watch, connections: impl Fn() -> i64) {
    drain.reached(Stage::Over).await;
    wait(Instant::now() + LAST_WRITES, || connections() == 0).await;
}

/// Starts a thread. It is reported whichever way it ends, a panic included; at the end of the process nobody listens any
/// more.
fn start(name: &str, dead: mpsc::UnboundedSender<()>, work: impl FnOnce() + Send + 'static) {
    let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _dead = Dead(dead);
        work();
    });
    thread.expect("a process that cannot start a thread cannot serve");
}

/// Reports that a thread has ended.
struct Dead(mpsc::UnboundedSender<()>);

impl Drop for Dead {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}
