//! Every flag of every subcommand is an environment variable too: its help names it, and it has an effect.

use std::collections::BTreeSet;

use crate::program::Folder;

/// A command line on which one variable more shows its effect: it ends at once, with exit code 1 or 2.
const LINES: [(&str, &str); 11] = [
    // A policy is required, and there is none; nor is there a certificate.
    ("proxy", "proxy --require-policy"),
    ("controller", "controller nothing --own-namespace a"),
    ("drain", "drain"),
    ("inject", "inject --filename /no/manifest"),
    ("uninject", "uninject"),
    ("admission-policy", "admission-policy --namespaces a --image x"),
    ("check", "check /no/policy"),
    ("explain", "explain --callback /no/callback"),
    ("simulate", "simulate https://127.0.0.1:1"),
    ("demo", "demo nothing"),
    ("demo-app", "demo-app nothing"),
];

/// Need not be there, and a bad one is told in the log of a proxy that serves: tests/proxy/effects.rs.
const IN_THE_LOG: &str = "--override-file";

/// No flag takes this; what each of these does with it is in [`EFFECTS`].
const WRONG: &str = " ";

/// Where a value is right whatever it is, or its effect is told elsewhere: subcommand, flag, value, and what is told then.
const EFFECTS: [(&str, &str, &str, &str); 17] = [
    ("proxy", "--tls-cert", "/n", "--tls-key: is missing beside --tls-cert"),
    ("proxy", "--tls-key", "/n", "--tls-cert: is missing beside --tls-key"),
    ("proxy", "--policy-file", "/n", "--policy-file: /n: no such file"),
    ("proxy", "--client-ca", "/n", "--client-ca: /n: no such file"),
    ("proxy", "--basic-auth-file", "/n", "--basic-auth-file: /n: no such file"),
    ("proxy", "--policy-cache", "/n", "--policy-cache: needs --policy-configmap"),
    ("controller", "--own-namespace", "A", "--own-namespace: Invalid value: \"A\""),
    ("inject", "--filename", "/a,/b", "/b: cannot be read"),
    ("uninject", "--filename", "/a,/b", "/b: cannot be read"),
    ("admission-policy", "--namespaces", "A", "--namespaces: Invalid value: \"A\""),
    ("admission-policy", "--image", " ", "--image: Invalid value: \" \""),
    ("explain", "--policy", "/n", "--policy: /n: "),
    ("explain", "--override", "/n", "--override: /n: "),
    ("explain", "--callback", "/n", "--callback: /n: "),
    ("simulate", "--command", "a,b", "--command: OpenIM has no command \"b\""),
    ("simulate", "--body", "/n", "--body: /n: "),
    ("simulate", "--ca", "/n", "--ca: /n: "),
];

/// The flags of a subcommand with what the help says of each.
fn flags(folder: &Folder, subcommand: &str) -> Vec<(String, String)> {
    let help = folder.run(&format!("{subcommand} --help")).code(0).out;
    let mut flags: Vec<(String, String)> = Vec::new();
    for line in help.lines().map(str::trim_start) {
        let named = line.split("--").nth(1).filter(|_| line.starts_with('-'));
        if let Some(rest) = named {
            let long: String =
                rest.chars().take_while(|letter| letter.is_ascii_lowercase() || *letter == '-').collect();
            flags.push((format!("--{long}"), String::new()));
        }
        if let Some((_, said)) = flags.last_mut() {
            said.push_str(line);
            said.push(' ');
        }
    }
    flags.retain(|(flag, _)| flag != "--help");
    assert!(!flags.is_empty(), "{help}");
    flags
}

#[test]
fn every_flag_is_a_variable_that_its_help_names_and_that_has_an_effect() {
    let folder = Folder::new();
    let mut used = BTreeSet::new();
    for (subcommand, line) in LINES {
        for (flag, said) in flags(&folder, subcommand) {
            let variable =
                format!("CALLBACK_GUARD_{}", flag.trim_start_matches('-').replace('-', "_").to_uppercase());
            assert!(said.contains(&format!("[env: {variable}]")), "{subcommand} {flag}: {said}");
            let effect = EFFECTS.iter().find(|(of, name, ..)| (*of, *name) == (subcommand, flag.as_str()));
            let (value, told) =
                effect.map_or((WRONG, format!("{flag}: ")), |(.., value, told)| (*value, (*told).to_owned()));
            used.extend(effect.copied());
            if flag == IN_THE_LOG {
                continue;
            }
            // The flag would win.
            let line = line.split(&format!(" {flag}")).next().unwrap_or_default();
            let without = folder.run(line);
            assert!(!without.err.contains(&told), "{told:?} is told without {variable} too: {without}");
            let ran = folder.program(line).env(&variable, value).run();
            assert!(ran.err.lines().any(|line| line.starts_with(&told)), "{variable}={value:?}: {ran}");
        }
    }
    assert_eq!(used.len(), EFFECTS.len(), "EFFECTS has a flag that is none: {used:?}");
}

#[test]
fn a_variable_that_is_set_to_nothing_is_not_set() {
    let folder = Folder::new();
    let body = r#"{"callbackCommand":"callbackBeforeSendSingleMsgCommand","operationID":"1"}"#;
    folder.write("body.json", body);
    let plain = folder.run("explain --callback body.json").code(0).out;
    let program = folder.program("explain --callback body.json");
    program.env("CALLBACK_GUARD_POLICY", "").env("CALLBACK_GUARD_OVERRIDE", "").run().code(0).out(&plain);
    let program = folder.program("explain").env("CALLBACK_GUARD_CALLBACK", "");
    program.run().code(2).err_has("--callback: is missing\n");
    let program = folder.program("uninject").env("CALLBACK_GUARD_FILENAME", "");
    program.run().code(2).err_has("--filename: is missing\n");
}
