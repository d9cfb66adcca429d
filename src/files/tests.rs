use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// A fresh directory, removed with what is in it when dropped.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("callback-guard-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes beside and renames over: what stands there now keeps its inode until the new one has another, so
    /// the change shows however coarse the file system's clock is.
    pub(crate) fn put(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let (path, beside) = (self.path(name), self.path(".beside"));
        fs::write(&beside, content).unwrap();
        fs::rename(&beside, &path).unwrap();
        path
    }

    /// Does what the kubelet does with a Secret: a new directory with all files, then `..data` is swapped to it.
    pub(crate) fn mount(&self, version: &str, files: &[(&str, &[u8])]) {
        let directory = self.path(&format!("..{version}"));
        fs::create_dir(&directory).unwrap();
        for (name, content) in files {
            fs::write(directory.join(name), content).unwrap();
            if !self.path(name).is_symlink() {
                symlink(format!("..data/{name}"), self.path(name)).unwrap();
            }
        }
        let old = fs::read_link(self.path("..data")).ok();
        symlink(format!("..{version}"), self.path("..data_tmp")).unwrap();
        fs::rename(self.path("..data_tmp"), self.path("..data")).unwrap();
        if let Some(old) = old {
            fs::remove_dir_all(self.0.join(old)).unwrap();
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// A watch whose files are good when none holds `bad`; what it loads is their text.
fn texts(paths: Vec<PathBuf>) -> Watch<impl FnMut() -> Result<Option<String>, String>> {
    let seen = Fingerprint::of(&paths);
    let read = move || {
        let mut whole = String::new();
        for path in &paths {
            let content = read_bounded(path, 1 << 10).map_err(|error| error.to_string())?;
            whole.push_str(std::str::from_utf8(&content).unwrap());
        }
        if whole.contains("bad") { Err(whole) } else { Ok(whole) }
    };
    let mut in_force = read().ok();
    Watch::new(seen, move || {
        let now = read()?;
        if in_force.as_ref() == Some(&now) {
            return Ok(None);
        }
        in_force = Some(now.clone());
        Ok(Some(now))
    })
}

fn changed(text: &str) -> Option<News<String, String>> {
    Some(News::Changed(text.to_owned()))
}

fn failed(text: &str) -> Option<News<String, String>> {
    Some(News::Failed(text.to_owned()))
}

#[test]
fn files_left_alone_are_no_news() {
    let folder = Folder::new();
    let mut watch = texts(vec![folder.put("a", "one")]);
    assert_eq!((watch.poll(), watch.poll(), watch.poll()), (None, None, None));
}

#[test]
fn a_swapped_symlink_two_levels_up_is_a_change() {
    let folder = Folder::new();
    folder.mount("2026_01", &[("a", b"one"), ("b", b"1")]);
    let mut watch = texts(vec![folder.path("a"), folder.path("b")]);
    assert_eq!(watch.poll(), None);
    folder.mount("2026_02", &[("a", b"two"), ("b", b"2")]);
    assert_eq!((watch.poll(), watch.poll()), (None, changed("two2")));
    assert_eq!((watch.poll(), watch.poll()), (None, None));
}

#[test]
fn a_swap_to_the_same_content_is_no_news() {
    let folder = Folder::new();
    folder.mount("2026_01", &[("a", b"one")]);
    let mut watch = texts(vec![folder.path("a")]);
    folder.mount("2026_02", &[("a", b"one")]);
    assert_eq!((watch.poll(), watch.poll(), watch.poll()), (None, None, None));
}

#[test]
fn a_file_written_in_place_is_a_change() {
    let folder = Folder::new();
    let path = folder.put("a", "one");
    let mut watch = texts(vec![path.clone()]);
    fs::write(&path, "longer").unwrap();
    assert_eq!((watch.poll(), watch.poll()), (None, changed("longer")));
}

#[test]
fn a_file_emptied_before_it_is_written_is_not_read_empty() {
    let folder = Folder::new();
    let path = folder.put("a", "one");
    let mut watch = texts(vec![path.clone()]);
    fs::write(&path, "").unwrap();
    assert_eq!(watch.poll(), None);
    fs::write(&path, "half").unwrap();
    assert_eq!(watch.poll(), None);
    fs::write(&path, "half and half").unwrap();
    assert_eq!(watch.poll(), changed("half and half"));
}

#[test]
fn a_file_that_stays_empty_is_read() {
    let folder = Folder::new();
    let path = folder.put("a", "one");
    let mut watch = texts(vec![path.clone()]);
    fs::write(&path, "").unwrap();
    assert_eq!((watch.poll(), watch.poll()), (None, changed("")));
}

#[test]
fn a_good_file_emptied_after_a_bad_one_is_not_read_empty_either() {
    let folder = Folder::new();
    let path = folder.put("a", "one");
    let mut watch = texts(vec![path.clone()]);
    for bad in ["bad", "bad, and told"] {
        fs::write(&path, bad).unwrap();
        assert_eq!((watch.poll(), watch.poll()), (None, None));
        if bad.ends_with("told") {
            assert_eq!(watch.poll(), failed(bad));
        }
        fs::write(&path, "").unwrap();
        assert_eq!(watch.poll(), None);
        fs::write(&path, "good again").unwrap();
        assert_eq!((watch.poll(), watch.poll()), (None, changed("good again")));
        fs::write(&path, "one").unwrap();
        assert_eq!((watch.poll(), watch.poll()), (None, changed("one")));
    }
}

#[test]
fn a_file_that_is_written_all_the_time_is_read_at_every_third_look() {
    let folder = Folder::new();
    let path = folder.put("a", "one");
    let mut watch = texts(vec![path.clone()]);
    for round in 1..=9 {
        let text = "x".repeat(round);
        fs::write(&path, &text).unwrap();
        let expected = if round % 3 == 0 { changed(&text) } else { None };
        assert_eq!(watch.poll(), expected, "{round}");
    }
    assert_eq!((watch.poll(), watch.poll()), (None, None));
}

#[test]
fn a_failure_is_told_at_the_second_load_and_only_once() {
    let folder = Folder::new();
    let mut watch = texts(vec![folder.put("a", "one")]);
    folder.put("a", "bad");
    assert_eq!((watch.poll(), watch.poll(), watch.poll()), (None, None, failed("bad")));
    for _ in 0..RETRY_POLLS * 3 {
        assert_eq!(watch.poll(), None);
    }
}

#[test]
fn another_failure_is_told_again() {
    let folder = Folder::new();
    let mut watch = texts(vec![folder.put("a", "one")]);
    folder.put("a", "bad");
    assert_eq!((watch.poll(), watch.poll(), watch.poll()), (None, None, failed("bad")));
    folder.put("a", "bad too");
    assert_eq!((watch.poll(), watch.poll(), watch.poll()), (None, None, failed("bad too")));
}

#[test]
fn two_halves_written_one_or_two_polls_apart_are_one_change_and_no_failure() {
    for apart in 1..=2 {
        let folder = Folder::new();
        let mut watch = texts(vec![folder.put("a", "one"), folder.put("b", "1")]);
        folder.put("a", "bad until b follows");
        for _ in 0..apart {
            assert_eq!(watch.poll(), None);
        }
        folder.put("a", "two");
        folder.put("b", "2");
        assert_eq!((watch.poll(), watch.poll()), (None, changed("two2")), "{apart}");
        assert_eq!((watch.poll(), watch.poll()), (None, None));
    }
}

#[test]
fn a_writer_that_is_never_done_is_told_all_the_same() {
    let folder = Folder::new();
    let mut watch = texts(vec![folder.put("a", "one")]);
    let polls = MOVING_POLLS * FAILING_LOADS;
    for round in 1..polls {
        folder.put("a", format!("bad {round}"));
        assert_eq!(watch.poll(), None, "{round}");
    }
    folder.put("a", "bad at last");
    assert_eq!(watch.poll(), failed("bad at last"));
}

#[test]
fn a_file_that_disappears_is_a_failure_and_its_return_restores() {
    let folder = Folder::new();
    let path = folder.put("a", "one");
    let mut watch = texts(vec![path.clone()]);
    fs::remove_file(&path).unwrap();
    let missing = format!("{}: no such file", path.display());
    assert_eq!((watch.poll(), watch.poll(), watch.poll()), (None, None, failed(&missing)));
    folder.put("a", "one");
    assert_eq!((watch.poll(), watch.poll(), watch.poll()), (None, Some(News::Restored), None));
}

#[test]
fn a_file_that_was_missing_at_the_start_is_noticed_when_it_comes() {
    let folder = Folder::new();
    let mut watch = texts(vec![folder.path("a")]);
    assert_eq!((watch.poll(), watch.poll()), (None, None));
    folder.put("a", "one");
    assert_eq!((watch.poll(), watch.poll()), (None, changed("one")));
}

#[test]
fn a_failure_that_ends_by_itself_is_noticed_within_a_minute() {
    let folder = Folder::new();
    let path = folder.put("a", "one");
    let mut loads = 0;
    let mut watch = Watch::new(Fingerprint::of(std::slice::from_ref(&path)), || {
        loads += 1;
        if loads <= 2 { Err("not yet valid") } else { Ok(Some("valid")) }
    });
    folder.put("a", "two");
    let told = Some(News::Failed("not yet valid"));
    assert_eq!((watch.poll(), watch.poll(), watch.poll()), (None, None, told));
    let quiet = (0..).take_while(|_| watch.poll().is_none()).count();
    assert_eq!(quiet, RETRY_POLLS as usize);
}

#[test]
fn a_second_write_within_one_tick_of_the_clock_is_not_lost() {
    let folder = Folder::new();
    let path = folder.put("a", "one");
    let mut watch = texts(vec![path.clone()]);
    let tick = std::time::SystemTime::now();
    let write = |text: &str| {
        fs::write(&path, text).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(tick).unwrap();
    };
    write("two");
    assert_eq!(watch.poll(), None);
    // As large and, by the clock of the file system, as old: as if the look had come between the two.
    write("six");
    watch.seen.renew();
    assert_eq!((watch.poll(), watch.poll()), (changed("six"), None));
}

#[tokio::test(start_paused = true)]
async fn a_running_watch_looks_at_every_interval() {
    let folder = Folder::new();
    let watch = texts(vec![folder.put("a", "one")]);
    let mut told = Vec::new();
    let started = tokio::time::Instant::now();
    let tell = |news| {
        told.push((started.elapsed(), news));
        folder.put("a", if told.len() == 1 { "bad" } else { "three" });
    };
    folder.put("a", "two");
    tokio::time::timeout(POLL_INTERVAL * 20, watch.run(POLL_INTERVAL, tell)).await.unwrap_err();
    let expected = [(1, changed("two")), (4, failed("bad")), (6, changed("three"))];
    assert_eq!(told, expected.map(|(polls, news)| (POLL_INTERVAL * polls, news.unwrap())));
}

#[test]
fn what_cannot_be_read_is_named_with_what_was_found() {
    let folder = Folder::new();
    let text = |path: &Path| read_bounded(path, 1 << 20).unwrap_err().to_string();
    let pipe = folder.path("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let socket = folder.path("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    symlink("nowhere", folder.path("dangling")).unwrap();
    let rows = [
        (folder.path("absent"), "no such file"),
        (folder.path("dangling"), "no such file"),
        (folder.0.clone(), "is a directory, expected a regular file"),
        (pipe, "is a pipe, expected a regular file"),
        (socket, "is a socket, expected a regular file"),
        ("/dev/null".into(), "is a device, expected a regular file"),
        (folder.put("big", vec![b' '; (1 << 20) + 1]), "is 1.1MiB, at most 1MiB is read"),
        // Its size is given as 0 and is not: the bound counts what is read.
        ("/proc/kallsyms".into(), "is 1.1MiB, at most 1MiB is read"),
    ];
    for (path, expected) in rows {
        if path.starts_with("/proc") && !path.exists() {
            continue;
        }
        assert_eq!(text(&path), format!("{}: {expected}", path.display()));
    }
}

#[test]
fn a_file_of_exactly_the_limit_is_read() {
    let folder = Folder::new();
    assert_eq!(read_bounded(&folder.put("a", "1234"), 4).unwrap(), b"1234");
    assert_eq!(read_bounded(&folder.put("a", ""), 4).unwrap(), b"");
    assert!(read_bounded(&folder.put("a", "12345"), 4).is_err());
}

#[test]
fn a_file_that_is_closed_to_us_is_named_with_its_mode_and_owner() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    let path = folder.put("key", "");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let facts = fs::metadata(&path).unwrap();
    // Through the mapping alone: a test that runs as root is refused nothing.
    let error = ReadError::from_io(&path, &io::Error::from(io::ErrorKind::PermissionDenied));
    assert_eq!(
        error.to_string(),
        format!(
            "{}: permission denied (mode 0600, owner {}:{}); expected a file that this process may read",
            path.display(),
            facts.uid(),
            facts.gid()
        )
    );
}

#[test]
fn sizes_are_rounded_up() {
    let rows = [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1KiB"), (1025, "1.1KiB"), (12 << 20, "12MiB")];
    for (bytes, expected) in rows {
        assert_eq!(size_text(bytes), expected);
    }
    assert_eq!(size_text(u64::MAX), "17179869184GiB");
}
