//! `controller`: connect, lead or wait, and give the Lease back at the end.

use std::hash::{BuildHasher as _, RandomState};
use std::rc::Rc;
use std::time::Instant;

use tracing::{error, info, warn};

use super::args::{self, ADMIN_PORT};
use super::process::{bind, local_runtime, open, report_panics};

use crate::admin;
use crate::controller::metrics::Metrics;
use crate::controller::page::ControllerPages;
use crate::controller::{self, Config, Shared};
use crate::server::Bound;
use crate::{log, tls};

/// Runs the controller to its end and returns the exit code.
pub fn run(args: args::Controller) -> u8 {
    let started = Instant::now();
    let _ = tls::provider().as_ref().clone().install_default();
    let queue = log::Queue::start(std::io::stdout());
    log::install(&queue, args.log_level, args.log_format);
    let code = match bind("--admin-listen", args.admin_listen, ADMIN_PORT, Bound::new) {
        Ok(admin) => serve(args, admin, &queue, started),
        Err(problem) => {
            super::complain(&[problem]);
            super::PROBLEM
        }
    };
    queue.flush();
    code
}

fn serve(args: args::Controller, admin: Bound, queue: &log::Queue, started: Instant) -> u8 {
    // A part that is missing would be noticed by nobody: another replica, or a new process, looks after all of it.
    let lines = queue.clone();
    report_panics(move || {
        lines.flush();
        std::process::exit(i32::from(super::PROBLEM));
    });
    let (address, limits) = (admin.address(), args.admin_limits);
    let identity = args.identity.unwrap_or_else(identity);
    if args.namespaces.is_empty() {
        warn!("No namespace is served: name some with --namespaces");
    }
    let config = Config {
        own_namespace: args.own_namespace,
        identity,
        namespaces: args.namespaces,
        trust_namespaces: args.trust_namespaces,
        cluster_domain: args.cluster_domain,
        lifetimes: args.lifetimes,
        lease_duration: args.lease_duration,
        installation: args.installation,
    };
    let shared = Rc::new(Shared::new(config, Metrics::new(queue.dropped())));
    local_runtime().block_on(async {
        let (listener, mut signals) = match open(admin) {
            Ok(opened) => opened,
            Err(error) => {
                error!(%error, "Neither the admin port can be served nor signals be received");
                return super::PROBLEM;
            }
        };
        info!(
            version = env!("CARGO_PKG_VERSION"),
            identity = shared.config.identity,
            namespaces = shared.config.namespaces.len(),
            admin.addr = %address,
            "Started"
        );
        let pages = Rc::new(ControllerPages::new(Rc::clone(&shared), started));
        tokio::task::spawn_local(admin::serve(pages, listener, limits));
        let signalled = Rc::new(tokio::sync::Notify::new());
        let ending = Rc::clone(&signalled);
        let running = controller::run(shared, async move { ending.notified().await });
        tokio::pin!(running);
        tokio::select! {
            () = &mut running => return 0,
            signal = signals.next() => info!(signal, "Shutting down"),
        }
        signalled.notify_one();
        tokio::select! {
            () = running => 0,
            _ = signals.next() => {
                warn!("A second signal: exiting at once");
                super::PROBLEM
            }
        }
    })
}

/// The host's name, which in a pod is the pod's, and a number: a container that restarts is another replica.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host.trim().chars().filter(|letter| letter.is_ascii_graphic()).take(200).collect();
    format!("{host}_{:08x}", RandomState::new().hash_one(std::process::id()) as u32)
}
