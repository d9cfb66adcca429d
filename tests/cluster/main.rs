//! On a real Kubernetes, which `tests/cluster/cluster` brings up: etcd and kube-apiserver (stage A), or a whole node
//! (stage B). Set `CALLBACK_GUARD_TEST_CLUSTER` to the folder of one that stands, and the tests use it.
//!
//! Where the machine cannot hold a cluster, these tests pass without a check and `tests/run` says so; in CI they fail.

mod audit;
mod chart;
mod client;
mod clock;
mod cluster;
mod cost;
mod crowd;
mod dns;
mod forward;
mod helm;
#[path = "../openim/judge.rs"]
mod judge;
mod openim;
mod operator;
mod process;
mod remains;
mod replica;
mod shop;
#[path = "../support/mod.rs"]
mod support;
mod tls_host;
mod webhook;

mod admission;
mod api;
mod controller;
mod ends;
mod image;
mod pods;
mod proof;
mod rights;
mod watch;
