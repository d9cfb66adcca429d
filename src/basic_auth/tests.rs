use super::*;
use crate::files::tests::Folder;

fn header(pair: &[u8]) -> Vec<u8> {
    format!("Basic {}", BASE64.encode(pair)).into_bytes()
}

fn credentials(content: &str) -> Credentials {
    Credentials::parse(content.as_bytes()).unwrap()
}

#[test]
fn a_known_pair_is_let_in_and_anything_near_it_is_not() {
    let known = credentials("openim:s3cret\nother:pass:with:colons\n中文:пароль 1\n");
    for pair in ["openim:s3cret", "other:pass:with:colons", "中文:пароль 1"] {
        assert!(known.verify(Some(&header(pair.as_bytes()))), "{pair}");
    }
    for pair in [
        "openim:s3cret ",
        "openim:s3cre",
        "openim:S3cret",
        "Openim:s3cret",
        "openim:pass:with:colons",
        "openim",
        "openim:",
        ":s3cret",
        ":",
        "",
        "openim:s3cret\n",
        "openim:s3cret\nother:pass:with:colons",
        "other:pass",
    ] {
        assert!(!known.verify(Some(&header(pair.as_bytes()))), "{pair}");
    }
    assert!(!known.verify(Some(&header(b"openim:\xff"))));
    assert!(!known.verify(None));
}

#[test]
fn each_place_in_the_file_is_let_in() {
    let lines: Vec<String> = (0..ENTRIES_LIMIT).map(|number| format!("user{number}:{number}")).collect();
    let known = credentials(&lines.join("\n"));
    assert_eq!(known.count(), ENTRIES_LIMIT);
    for place in [0, 1, ENTRIES_LIMIT / 2, ENTRIES_LIMIT - 1] {
        assert!(known.verify(Some(&header(lines[place].as_bytes()))), "{place}");
    }
    assert!(!known.verify(Some(&header(b"user1:2"))));
}

#[test]
fn the_header_is_read_as_the_standards_say() {
    // RFC 7617, 2: its own example.
    let known = credentials("Aladdin:open sesame");
    for header in [
        "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
        "basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
        "BASIC   QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
        "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ",
        " Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ== ",
    ] {
        assert!(known.verify(Some(header.as_bytes())), "{header}");
    }
    for header in [
        "",
        "Basic",
        "Basic ",
        "QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
        "BasicQWxhZGRpbjpvcGVuIHNlc2FtZQ==",
        "Bearer QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
        "Basic\tQWxhZGRpbjpvcGVuIHNlc2FtZQ==",
        "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ== x",
        "Basic QWxhZGRp bjpvcGVuIHNlc2FtZQ==",
        "Basic Aladdin:open sesame",
        "Basic \u{0}",
    ] {
        assert!(!known.verify(Some(header.as_bytes())), "{header}");
    }
    let long = format!("Basic {}", "QWxh".repeat(PAIR_LIMIT_BYTES));
    assert!(!known.verify(Some(long.as_bytes())));
}

#[test]
fn the_longest_line_is_let_in_and_one_byte_more_is_a_fault() {
    let line = format!("u:{}", "x".repeat(PAIR_LIMIT_BYTES - 2));
    assert!(credentials(&line).verify(Some(&header(line.as_bytes()))));
    let expected = Problem::BadLines(vec![BadLine { line: 1, fault: Fault::TooLong }]);
    assert_eq!(Credentials::parse(format!("{line}x").as_bytes()).unwrap_err(), expected);
}

#[test]
fn comments_blank_lines_and_the_marks_of_windows_are_skipped() {
    let known = credentials("\u{feff}openim:one\r\n\r\n# rotated in May\r\n  \nopenim:two");
    assert_eq!(known.count(), 2);
    assert!(known.verify(Some(&header(b"openim:one"))));
    assert!(known.verify(Some(&header(b"openim:two"))));
    assert!(!known.verify(Some(&header(b"# rotated in May"))));
}

#[test]
fn every_malformed_line_is_named_and_none_is_shown() {
    let content =
        b"good:one\nsecretword\n:secretword\nsecretword:\n secretword:x\nsecretword:x \nsecret\tword:x\n\
        secretword:\xff\ngood:two\n";
    let faults = [
        (2, Fault::NoColon),
        (3, Fault::NoUser),
        (4, Fault::NoPassword),
        (5, Fault::Space),
        (6, Fault::Space),
        (7, Fault::Control),
        (8, Fault::NotUtf8),
    ];
    let problem = Credentials::parse(content).unwrap_err();
    assert_eq!(problem, Problem::BadLines(faults.map(|(line, fault)| BadLine { line, fault }).to_vec()));
    let text = problem.to_string();
    assert!(text.starts_with("line 2: no colon, expected `user:password`; line 3: no user before"), "{text}");
    assert!(!text.contains("secret"), "{text}");
    let many = Credentials::parse("x\n".repeat(12).as_bytes()).unwrap_err().to_string();
    assert!(many.ends_with("line 10: no colon, expected `user:password`; and 2 more lines"), "{many}");
}

#[test]
fn a_file_without_pairs_or_with_too_many_is_refused() {
    for content in ["", "\n\n", "# openim:one\n"] {
        assert_eq!(Credentials::parse(content.as_bytes()).unwrap_err(), Problem::Empty, "{content:?}");
    }
    let found = ENTRIES_LIMIT + 1;
    let problem = Credentials::parse("a:b\n".repeat(found).as_bytes()).unwrap_err();
    assert_eq!(problem, Problem::TooMany { found });
}

#[test]
fn a_file_that_cannot_be_used_at_the_start_is_named_with_its_flag() {
    let folder = Folder::new();
    let path = folder.path("users");
    let text = |path: &Path| open(path.to_owned()).map(|_| ()).unwrap_err().to_string();
    assert_eq!(text(&path), format!("--basic-auth-file: {}: no such file", path.display()));
    folder.put("users", "openim");
    let expected =
        format!("--basic-auth-file: {}: line 1: no colon, expected `user:password`", path.display());
    assert_eq!(text(&path), expected);
}

#[tokio::test(start_paused = true)]
async fn a_changed_file_is_in_force_and_a_broken_one_keeps_the_old() {
    let folder = Folder::new();
    let (auth, reloader) = open(folder.put("users", "openim:one")).unwrap();
    let (sender, mut events) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(reloader.run(move |event| sender.send(event).unwrap()));
    let lets_in = |pair: &str| auth.verify(Some(&header(pair.as_bytes())));
    assert!(lets_in("openim:one"));

    folder.put("users", "openim:two\nopenim:three");
    assert_eq!(events.recv().await, Some(ReloadEvent::Reloaded { count: 2 }));
    assert_eq!(["openim:one", "openim:two", "openim:three"].map(lets_in), [false, true, true]);

    folder.put("users", "openim");
    let Some(ReloadEvent::Failed { reason }) = events.recv().await else { panic!("it cannot load") };
    assert!(reason.starts_with("--basic-auth-file: ") && reason.contains(": line 1: no colon"), "{reason}");
    assert!(lets_in("openim:two"));

    folder.put("users", "openim:two\nopenim:three");
    assert_eq!(events.recv().await, Some(ReloadEvent::Restored));
    folder.put("users", "openim:four");
    assert_eq!(events.recv().await, Some(ReloadEvent::Reloaded { count: 1 }));
    assert_eq!(["openim:two", "openim:four"].map(lets_in), [false, true]);
}
