//! `drain`: a hook that cannot do its work says so in one sentence.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::thread;

use crate::program::Folder;

#[test]
fn where_no_proxy_listens_it_fails_with_a_sentence() {
    // A port that was just given back is nobody's.
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let ran = Folder::new().run(&format!("drain --admin-listen {free}")).code(1).out("");
    let ran = ran.err_has(&format!("the proxy at {free} was not told that the pod is ending: "));
    assert_eq!(ran.err.lines().count(), 1, "{ran}");
}

#[test]
fn any_address_stands_for_loopback() {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let ran = Folder::new().run(&format!("drain --admin-listen [::]:{}", free.port())).code(1);
    ran.err_has(&format!("the proxy at {free} was not told"));
}

/// Something that listens, gives every caller this answer, and stays on the line. Gives its address.
fn answering(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address").to_string();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a caller");
        let mut asked = [0; 1024];
        let read = stream.read(&mut asked).expect("a request");
        assert!(asked[..read].starts_with(b"POST /drain HTTP/1.1\r\n"));
        stream.write_all(answer.as_bytes()).expect("the caller reads");
        // Nothing more, until the caller leaves.
        let _ = stream.read(&mut asked);
    });
    address
}

#[test]
fn the_first_line_of_the_answer_is_enough_and_ends_it() {
    let admin = answering("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n");
    Folder::new().run(&format!("drain --admin-listen {admin}")).code(0).out("").err("");
}

#[test]
fn the_address_may_come_from_the_environment_as_the_proxy_s_does() {
    let admin = answering("HTTP/1.1 200 OK\r\n");
    let folder = Folder::new();
    folder.program("drain").env("CALLBACK_GUARD_ADMIN_LISTEN", &admin).run().code(0).out("").err("");
}

#[test]
fn what_is_no_proxy_is_told_with_what_it_said_and_is_not_waited_for() {
    for (answer, told) in [
        ("HTTP/1.1 404 Not Found\r\n\r\n", "it answered \"HTTP/1.1 404 Not Found\""),
        ("SSH-2.0-OpenSSH_9.2\r\n", "it answered \"SSH-2.0-OpenSSH_9.2\""),
        ("", "no answer within 2 s (is --admin-listen the proxy's?)"),
    ] {
        let ran = Folder::new().run(&format!("drain --admin-listen {}", answering(answer))).code(1).out("");
        let ran = ran.err_has(told);
        assert_eq!(ran.err.lines().count(), 1, "{ran}");
    }
}

#[test]
fn an_address_that_is_none_is_a_wrong_command_line() {
    Folder::new()
        .run("drain --admin-listen 9090")
        .code(2)
        .err_has("--admin-listen: \"9090\" is not ADDRESS:PORT");
}
