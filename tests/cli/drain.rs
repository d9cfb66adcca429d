//! `drain`: a hook that cannot do its work says so in one sentence.

use std::net::TcpListener;

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
