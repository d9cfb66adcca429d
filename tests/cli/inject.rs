//! `inject` and `uninject`: every manifest of `tests/support/manifests` with what comes of it beside it.

use std::fs;
use std::path::PathBuf;

use crate::program::{Folder, repository};

fn manifests() -> Vec<PathBuf> {
    let entries = fs::read_dir(repository("tests/support/manifests")).expect("the manifests");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|ending| ending == "yaml" || ending == "json"));
    files.sort();
    assert!(files.len() >= 8, "{files:?}");
    files
}

/// Whether `inject` reports errors in this manifest.
fn is_wrong(path: &std::path::Path) -> bool {
    path.file_stem().is_some_and(|stem| stem.to_string_lossy().starts_with("wrong"))
}

#[track_caller]
fn golden(path: &std::path::Path, ending: &str, found: &str) {
    let path = path.with_extension(ending);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, found).expect("a golden file is written");
    }
    let expected = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(found, expected, "{}; UPDATE_GOLDEN=1 writes it anew", path.display());
}

#[test]
fn every_manifest_becomes_what_stands_beside_it() {
    for path in manifests() {
        let folder = Folder::new();
        fs::copy(&path, folder.path().join("FILE")).expect("a copy");
        let wrong = is_wrong(&path);
        let ran = folder.run("inject --image callback-guard:test -f FILE").code(i32::from(wrong));
        // The version is no news.
        let out = ran.out.replace(env!("CARGO_PKG_VERSION"), "VERSION");
        golden(&path, "injected", &out);
        golden(&path, "stderr", &ran.err);
    }
}

#[test]
fn injected_twice_is_injected_once_and_uninject_gives_back_the_same() {
    for path in manifests().into_iter().filter(|path| !is_wrong(path)) {
        let folder = Folder::new();
        let text = fs::read_to_string(&path).expect("a manifest");
        let once = folder.program("inject -f -").stdin(&text).run().code(0).out;
        assert_ne!(once, text);
        folder.program("inject -f -").stdin(&once).run().code(0).out(&once);
        let back = folder.program("uninject -f -").stdin(&once).run().code(0).out;
        assert!(!back.contains("injected-"), "{back}");
        // Written anew, it differs from the first in its spelling alone, and from then on in nothing.
        folder.program("uninject -f -").stdin(&back).run().code(0).out(&back);
        folder.program("inject -f -").stdin(&back).run().code(0).out(&once);
    }
}

#[test]
fn documents_that_are_left_alone_come_out_byte_for_byte() {
    let text = "# c\nkind:   Service\n--- # x\nnot: [\"a\",\n  'b']\n...\n%YAML 1.2\n---\nkind: x\n\n";
    for subcommand in ["inject", "uninject"] {
        Folder::new().program(&format!("{subcommand} -f -")).stdin(text).run().code(0).out(text);
    }
}

#[test]
fn several_files_are_one_stream_and_a_problem_in_one_writes_none() {
    let folder = Folder::new();
    folder.write("a.yaml", "kind: A");
    folder.write("b.yaml", "kind: B\n");
    folder.write("c.yaml", "kind: [\n");
    folder.run("inject -f a.yaml -f b.yaml").code(0).out("kind: A\n---\nkind: B\n");
    let ran = folder.run("inject -f a.yaml -f c.yaml -f none.yaml").code(1).out("");
    ran.err_has("c.yaml:1:7: Invalid YAML: ").err_has("none.yaml: cannot be read: ");
}

#[test]
fn flags_that_cannot_be_are_all_told() {
    let ran =
        Folder::new().run("inject -f x --policy-configmap A/b --tls-secret=-x --image=").code(2).out("");
    ran.err_has("--policy-configmap: Invalid value: \"A/b\"").err_has("--tls-secret: ").err_has("--image: ");
    Folder::new().run("inject").code(2).out("");
    Folder::new().run("uninject").code(2).out("");
}

#[test]
fn every_flag_that_a_sidecar_is_given_is_one_of_the_proxy() {
    let folder = Folder::new();
    let help = folder.run("proxy --help").code(0).out;
    let injected =
        fs::read_to_string(repository("tests/support/manifests/annotations.injected")).expect("a file");
    let flags: Vec<_> = injected.split('"').filter(|text| text.starts_with("--")).collect();
    assert!(flags.len() > 10, "{flags:?}");
    for arg in flags {
        let name = flag(arg);
        let is_known = help.split_whitespace().any(|word| word.split(['=', '[']).next() == Some(name));
        assert!(is_known, "{arg}");
    }
}

#[test]
fn the_proxy_takes_the_arguments_of_a_sidecar_and_fails_at_the_missing_certificate_alone() {
    let manifests = ["deployment.injected", "annotations.injected"];
    for text in manifests.map(|name| fs::read_to_string(repository("tests/support/manifests").join(name))) {
        let text = text.expect("a file");
        // Told to wait for it, it would not fail.
        let args = text.split('"').filter(|arg| arg.starts_with("--") && flag(arg) != "--tls-wait");
        let args: Vec<_> = args
            .map(|arg| if flag(arg) == "--listen" { "--listen=127.0.0.1:0" } else { arg })
            .map(|arg| arg.replace("$(POD_NAMESPACE)", "shop"))
            .collect();
        let folder = Folder::new();
        let program = folder.program(&format!("proxy {}", args.join(" ")));
        let ran = program.env("CALLBACK_GUARD_ADMIN_LISTEN", "127.0.0.1:0").run().code(1);
        ran.problems_of(&["--tls-cert", "--tls-key"], "");
    }
}

fn flag(arg: &str) -> &str {
    arg.split('=').next().unwrap_or(arg)
}
