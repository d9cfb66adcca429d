//! The attacks. Each is run by the test target, which asserts, and by the benchmark, which prints.

#![allow(dead_code, reason = "the tests call each attack by its name, the benchmark all of them")]

pub(crate) mod admin;
pub(crate) mod announced;
pub(crate) mod bodies;
pub(crate) mod bursts;
pub(crate) mod connections;
pub(crate) mod floods;
pub(crate) mod heads;
pub(crate) mod logs;
pub(crate) mod policy;
pub(crate) mod records;
pub(crate) mod unread;

use crate::lab::Lab;

/// An attack and its name.
pub(crate) type Named = (&'static str, fn() -> Lab);

/// Every attack.
pub(crate) const ALL: [Named; 44] = [
    ("heads::references", heads::references),
    ("heads::references_by_many", heads::references_by_many),
    ("heads::distinct_names", heads::distinct_names),
    ("heads::distinct_names_by_many", heads::distinct_names_by_many),
    ("heads::half_h1", heads::half_h1),
    ("heads::stuck", heads::stuck),
    ("heads::pinned", heads::pinned),
    ("bodies::map", bodies::map),
    ("bodies::map_by_many", bodies::map_by_many),
    ("bodies::answers_at_once", bodies::answers_at_once),
    ("bodies::requests_at_once", bodies::requests_at_once),
    ("bodies::packed_answers", bodies::packed_answers),
    ("records::trailers", records::trailers),
    ("records::half_messages", records::half_messages),
    ("records::unread", records::unread),
    ("records::new_keys", records::new_keys),
    ("admin::silent", admin::silent),
    ("admin::unread", admin::unread),
    ("admin::from_everywhere", admin::from_everywhere),
    ("unread::h1", unread::h1),
    ("unread::h2_large", unread::h2_large),
    ("unread::h2_small", unread::h2_small),
    ("unread::slowly_read", unread::slowly_read),
    ("unread::send_buffers", unread::send_buffers),
    ("connections::idle", connections::idle),
    ("connections::full", connections::full),
    ("connections::streams", connections::streams),
    ("connections::in_flight", connections::in_flight),
    ("connections::in_flight_by_many", connections::in_flight_by_many),
    ("connections::handshakes_ecdsa", connections::handshakes_ecdsa),
    ("connections::handshakes_rsa", connections::handshakes_rsa),
    ("bursts::from_everywhere", bursts::from_everywhere),
    ("floods::frames", floods::frames),
    ("floods::frames_by_many", floods::frames_by_many),
    ("floods::windows", floods::windows),
    ("floods::windows_by_many", floods::windows_by_many),
    ("floods::resets", floods::resets),
    ("floods::resets_by_many", floods::resets_by_many),
    ("policy::patterns", policy::patterns),
    ("policy::patterns_by_many", policy::patterns_by_many),
    ("policy::tokens", policy::tokens),
    ("policy::tokens_by_many", policy::tokens_by_many),
    ("policy::pipelined", policy::pipelined),
    ("logs::garbage", logs::garbage),
];
