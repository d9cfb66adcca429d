//! The program as it is typed: each test runs the real binary in a fresh folder of its own, and looks at its exit code
//! and both its streams. What went wrong is shown whole.
//!
//! The texts of `--help` are kept in `golden/`. After a change that is meant, write them anew, and look at the
//! difference:
//!
//! ```text
//! UPDATE_GOLDEN=1 cargo test --test cli
//! ```
//!
//! The same writes the block of `proxy --help` in the README.

mod program;
#[path = "../support/mod.rs"]
mod support;

mod admission_policy;
mod check;
mod controller;
mod demo;
mod demo_app;
mod drain;
mod explain;
mod help;
mod inject;
mod mistakes;
mod readme;
mod recorded;
mod simulate;
mod start;
mod variables;
