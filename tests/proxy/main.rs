//! The proxy on real sockets: the binary, a scripted app behind it, and callers over TLS in front of it.

#[path = "../support/mod.rs"]
mod support;

mod admin;
mod after;
mod bad_input;
mod cache;
mod callers;
mod cluster;
mod config_map;
mod connections;
mod crashing_fields;
mod descriptors;
mod drain;
mod effects;
mod given_back;
mod greedy;
mod hostile;
mod instructions;
mod large_bodies;
mod logs;
mod matrix;
mod memory_limit;
mod operation_ids;
mod policy;
mod raw_h2;
mod raw_http;
mod recorded;
mod reload;
mod shares;
mod tls;
mod tls_records;
mod tls_wait;
mod trouble;
mod upstream;
mod whose_verdict;
