//! `--help` is the reference of the flags, so it changes by intention alone, and the README says the same.

use std::fs;

use crate::program::{Folder, repository};

fn is_updating() -> bool {
    std::env::var_os("UPDATE_GOLDEN").is_some()
}

#[track_caller]
fn same(name: &str, found: &str) {
    let path = repository("tests/cli/golden").join(name);
    if is_updating() {
        fs::write(&path, found).expect("a golden file is written");
        return;
    }
    let expected = fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; UPDATE_GOLDEN=1 writes it", path.display()));
    assert_eq!(
        found,
        expected,
        "{} differs; if that is meant, UPDATE_GOLDEN=1 writes it anew",
        path.display()
    );
}

/// The subcommands, as the program itself lists them.
fn subcommands(folder: &Folder) -> Vec<String> {
    let help = folder.run("-h").code(0).out;
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let list = list.take_while(|line| !line.is_empty());
    // A line that is indented further goes on about the one above.
    let names = list.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names: Vec<_> = names.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    assert!(names.len() >= 4, "{names:?} out of\n{help}");
    names
}

#[test]
fn the_help_of_every_subcommand_is_as_it_was() {
    let folder = Folder::new();
    same("help.txt", &folder.run("--help").code(0).err("").out);
    for name in subcommands(&folder) {
        let ran = folder.run(&format!("{name} --help")).code(0).err("");
        same(&format!("{name}.txt"), &ran.out);
    }
}

#[test]
fn no_golden_file_is_left_of_a_subcommand_that_is_gone() {
    let folder = Folder::new();
    let known = subcommands(&folder);
    for entry in fs::read_dir(repository("tests/cli/golden")).expect("the golden files") {
        let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
        let subcommand = name.strip_suffix(".txt").unwrap_or(&name);
        assert!(subcommand == "help" || known.iter().any(|known| known == subcommand), "{name}");
    }
}

#[test]
fn help_fits_a_terminal_and_the_environment_changes_nothing_in_it() {
    let folder = Folder::new();
    let plain = folder.run("proxy --help").code(0).out;
    assert!(plain.lines().all(|line| line.chars().count() <= 100), "{plain}");
    let ran = folder.program("proxy --help").env("CALLBACK_GUARD_WORKERS", "a secret").run();
    ran.code(0).out(&plain).err("");
}

#[test]
fn the_version_is_that_of_the_package() {
    let expected = format!("callback-guard {}\n", env!("CARGO_PKG_VERSION"));
    Folder::new().run("--version").code(0).out(&expected).err("");
    Folder::new().run("-V").code(0).out(&expected).err("");
}

#[test]
fn without_a_subcommand_the_usage_is_shown_as_an_error() {
    Folder::new().run("").code(2).out("").err_has("Usage: callback-guard <COMMAND>").err_has("proxy");
    Folder::new().run("prxy").code(2).out("").err_has("prxy: there is no such subcommand");
}

const BEGIN: &str = "<!-- proxy --help -->\n";
const END: &str = "<!-- /proxy --help -->";

#[test]
fn the_readme_shows_the_flags_of_the_proxy_as_they_are() {
    let help = Folder::new().run("proxy --help").code(0).out;
    let expected = format!("```text\n$ callback-guard proxy --help\n{help}```\n");
    let path = repository("README.md");
    let readme = fs::read_to_string(&path).unwrap_or_else(|error| panic!("README.md: {error}"));
    let parts = readme
        .split_once(BEGIN)
        .and_then(|(before, rest)| rest.split_once(END).map(|(block, after)| (before, block, after)));
    let Some((before, block, after)) = parts else {
        panic!(
            "README.md has no block between {:?} and {END:?}, which is to show `proxy --help`",
            BEGIN.trim()
        );
    };
    if is_updating() {
        fs::write(&path, format!("{before}{BEGIN}{expected}{END}{after}")).expect("README.md is written");
        return;
    }
    assert_eq!(block, expected, "README.md is behind `proxy --help`; UPDATE_GOLDEN=1 writes the block anew");
}
