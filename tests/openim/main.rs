//! OpenIM's own code as the judge of what the guard does.

mod behaviours;
mod client;
mod corpora;
mod differential;
mod judge;
#[path = "../support/mod.rs"]
mod support;
