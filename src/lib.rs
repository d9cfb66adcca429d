//! callback-guard answers OpenIM Server's callbacks before a deadline, whatever the business app does.
//!
//! It is the sidecar's program, and a library only so that tests and the program's own subcommands can use the same
//! parts. It is no general proxy: one kind of request, one app behind it, and an answer to everything.
//!
//! ```text
//!              TLS, h1 or h2                         loopback, HTTP/1.1 or a unix socket
//!  OpenIM  ──────────────────▶  server ─▶ proxy  ──────────────────▶  app
//!          ◀──────────────────                   ◀──────────────────
//!             always an answer,    │        │      sometimes an answer,
//!             by the deadline      │        │      when it pleases
//!                                policy   verdict
//! ```
//!
//! The route of a callback stands in [`proxy`]; what OpenIM makes of an answer in [`verdict`]; how it reads JSON in
//! [`go_json`]; what is answered when the app does not in [`policy`].
//!
//! # Floors
//!
//! Modules stand in the order of their floors and use only what stands above them (the domain, floor 0, is one
//! piece). `tests/house.rs` reads the `use` lines and keeps it so. Time enters the domain as an argument, which is what
//! makes deadlines, breakers and overrides exact in their tests.

#![deny(unsafe_code)]

// floor 0: the domain. No I/O, no clock, no task, no log.
pub mod cause;
pub mod cancel;
pub mod go_json;
pub mod callback;
pub mod breaker;
pub mod policy;
pub mod after;
pub mod verdict;
pub mod reply;
pub mod sidecar;
// floor 1: edges. Each knows the domain and one outside thing.
pub mod held;
pub mod turns;
pub mod wire;
pub mod niceness;
pub mod decode;
pub mod files;
pub mod cgroup;
pub mod descriptors;
pub mod tls;
pub mod authority;
pub mod basic_auth;
pub mod upstream;
pub mod settle;
pub mod in_force;
pub mod metrics;
pub mod memory;
pub mod log;
pub mod drain;
pub mod deadlines;
pub mod status;
pub mod ready;
pub mod api_server;
pub mod source;
// floor 2: servers.
pub mod server;
pub mod deliveries;
pub mod proxy;
pub mod admin;
pub mod controller;
// floor 3: the program.
pub mod cli;
// Compiled for tests and for `fuzz/` alone.
#[cfg(any(test, fuzzing))]
pub mod fuzz;
