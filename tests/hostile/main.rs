//! Attacks on the real program, in a memory cgroup of the size that `inject` writes, with good callers beside them: every good
//! callback gets its own right answer in time, the process lives, and when the attack is over its memory comes back.
//!
//! The bounds on time have a margin of ten, and everybody's priority is set, so that a busy machine does not decide. The exact
//! figures are the benchmark's: `cargo bench --bench hostile` prints this table from the program of a release.

#[path = "../support/mod.rs"]
mod support;

mod attacker;
mod attacks;
mod cgroup;
mod good;
mod lab;
mod pauses;
mod priority;
mod probe;
mod setup;
mod toy;

use attacks::{admin, announced, bodies, bursts, connections, floods, heads, logs, policy, records, unread};

#[test]
fn good_callers_do_not_notice_heads_that_are_small_on_the_wire_and_large_in_memory() {
    heads::references().hold();
}

#[test]
fn good_callers_do_not_notice_heads_with_many_names() {
    heads::distinct_names().hold();
}

#[test]
fn good_callers_do_not_notice_half_heads_over_http1() {
    heads::half_h1().hold();
}

#[test]
fn half_a_head_ends_with_its_timeout_over_http2_and_harms_nobody_over_http1() {
    heads::stuck().hold();
}

#[test]
fn good_callers_do_not_notice_table_entries_that_keep_read_buffers() {
    heads::pinned().hold();
}

#[test]
fn good_callers_do_not_notice_a_map_with_one_key_again_and_again() {
    bodies::map().hold();
}

#[test]
fn good_callers_do_not_notice_large_answers_at_once() {
    bodies::answers_at_once().hold();
}

#[test]
fn good_callers_do_not_notice_large_requests_at_once() {
    bodies::requests_at_once().hold();
}

#[test]
fn good_callers_do_not_notice_packed_answers() {
    bodies::packed_answers().hold();
}

#[test]
fn room_that_is_only_announced_is_not_made() {
    announced::bodies().hold();
}

#[test]
fn trailers_on_many_connections_at_once_take_no_memory_worth_the_name() {
    records::trailers().hold();
}

#[test]
fn a_handshake_message_that_does_not_end_takes_less_than_24_kib() {
    records::half_messages().hold();
}

#[test]
fn an_answer_that_tls_has_and_nobody_reads_ends_its_connection_in_time() {
    records::unread().hold();
}

#[test]
fn good_callers_do_not_notice_new_keys_again_and_again() {
    records::new_keys().hold();
}

#[test]
fn probes_are_answered_beside_silent_sockets() {
    admin::silent().hold();
}

#[test]
fn probes_are_answered_beside_sockets_that_read_nothing() {
    admin::unread().hold();
}

#[test]
fn probes_are_answered_beside_sockets_from_everywhere() {
    admin::from_everywhere().hold();
}

#[test]
fn answers_that_nobody_reads_over_http1_take_no_room_from_others() {
    unread::h1().hold();
}

#[test]
fn large_answers_that_nobody_reads_over_http2_take_no_room_from_others() {
    unread::h2_large().hold();
}

#[test]
fn small_answers_that_nobody_reads_are_counted_too() {
    unread::h2_small().hold();
}

#[test]
fn an_answer_that_is_not_taken_ends_its_connection() {
    unread::slowly_read().hold();
}

#[test]
fn the_kernel_keeps_little_of_what_nobody_reads() {
    unread::send_buffers().hold();
}

#[test]
fn good_callers_do_not_notice_idle_connections() {
    connections::idle().hold();
}

#[test]
fn new_callers_get_in_beside_more_idle_connections_than_places() {
    connections::full().hold();
}

#[test]
fn good_callers_do_not_notice_streams_without_bodies() {
    connections::streams().hold();
}

#[test]
fn one_connection_does_not_take_every_place_in_flight() {
    connections::in_flight().hold();
}

#[test]
fn good_callers_do_not_notice_handshakes_with_ecdsa() {
    connections::handshakes_ecdsa().hold();
}

#[test]
fn good_callers_do_not_notice_handshakes_with_rsa() {
    connections::handshakes_rsa().hold();
}

#[test]
fn good_callers_do_not_notice_bursts_of_small_callbacks_from_everywhere() {
    bursts::from_everywhere().hold();
}

#[test]
fn good_callers_do_not_notice_frames_that_carry_no_callback() {
    floods::frames().hold();
}

#[test]
fn good_callers_do_not_notice_windows_that_move() {
    floods::windows().hold();
}

#[test]
fn good_callers_do_not_notice_streams_that_are_reset() {
    floods::resets().hold();
}

#[test]
fn good_callers_do_not_notice_windows_that_move_on_64_connections() {
    floods::windows_by_many().hold();
}

#[test]
fn good_callers_do_not_notice_streams_that_are_reset_on_64_connections() {
    floods::resets_by_many().hold();
}

#[test]
fn good_callers_do_not_notice_callers_who_do_not_wait_for_answers() {
    policy::pipelined().hold();
}

#[test]
fn good_callers_do_not_notice_long_ids_beside_many_patterns() {
    policy::patterns().hold();
}

#[test]
fn good_callers_do_not_notice_many_options_of_connection() {
    policy::tokens().hold();
}

#[test]
fn garbage_makes_few_lines() {
    logs::garbage().hold();
}
