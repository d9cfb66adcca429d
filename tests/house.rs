//! The rules of the house that no compiler knows. Run with UPDATE_GOLDEN=1 to write the generated documents again.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use callback_guard::after::Loss;
use callback_guard::callback::command::{self, Notifications, Phase, SafeDefault};
use callback_guard::callback::rejection::RejectionCause;
use callback_guard::cause::{Cause, Overload};
use callback_guard::cli::admission_policy::{self, AdmissionPolicy, IMAGE_SETTINGS, Values};
use callback_guard::metrics::Metrics;
use callback_guard::metrics::catalog::{Audience, Entry};
use callback_guard::sidecar::annotations::{self, INJECT, PREFIX};
use callback_guard::sidecar::{Notice, Reason};
use callback_guard::verdict::FINDINGS;
use prometheus_client::metrics::counter::Counter;

#[path = "house/values.rs"]
mod values;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every file below a folder with one of these endings, as (path from the root, text).
fn files(folder: &str, endings: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the repository") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if endings.iter().any(|ending| path.to_string_lossy().ends_with(ending)) {
                let name = path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
                found.push((name, fs::read_to_string(&path).expect("UTF-8")));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "nothing below {folder}");
    found
}

/// The code of a source file without its tests.
fn product(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or(text)
}

/// The modules of lib.rs in their order, each with its floor.
fn floors() -> Vec<(String, usize)> {
    let mut floor = None;
    let mut modules = Vec::new();
    for line in read("src/lib.rs").lines() {
        if let Some(rest) = line.strip_prefix("// floor ") {
            floor = rest.chars().next().and_then(|digit| digit.to_digit(10));
        }
        if let Some(module) = line.strip_prefix("pub mod ").and_then(|rest| rest.strip_suffix(';')) {
            let floor = floor.unwrap_or_else(|| panic!("{module} stands above the first floor"));
            modules.push((module.to_owned(), floor as usize));
        }
    }
    modules
}

/// `source` of `src/source/file.rs`.
fn module_of(file: &str) -> &str {
    let name = file.trim_start_matches("src/").split('/').next().expect("a file has a name");
    name.trim_end_matches(".rs")
}

/// The modules of this crate that a text names, also those in the braces of `use crate::{held::Held, wire}`.
fn named(text: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let code = text.match_indices("crate::").filter(|(at, _)| {
        let line = text[..*at].rsplit('\n').next().unwrap_or_default();
        !line.trim_start().starts_with("//")
    });
    for (at, path) in code {
        let rest = &text[at + path.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            names.push(first_word(rest));
            continue;
        };
        let mut depth = 1;
        let mut begins = 0;
        for (at, letter) in group.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => {
                    names.push(first_word(&group[begins..at]));
                    begins = at + 1;
                }
                _ => {}
            }
            if depth == 0 {
                names.push(first_word(&group[begins..at]));
                break;
            }
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

fn first_word(text: &str) -> &str {
    let text = text.trim_start();
    text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').next().unwrap_or_default()
}

#[test]
fn modules_in_braces_are_seen_too() {
    assert_eq!(named("use crate::held;\nlet x = crate::wire::y(crate::log::z);"), ["held", "wire", "log"]);
    let group = "pub(super) use crate::{\n    held::{Held, Holding}, wire,\n    log::{self, Line},\n};\nuse x::{tls};";
    assert_eq!(named(group), ["held", "wire", "log"]);
    assert_eq!(named("    // crate::held\n//! crate::{wire, log}\nuse crate::{tls};"), ["tls"]);
}

#[test]
fn floors_point_down() {
    let modules = floors();
    let place: BTreeMap<_, _> =
        modules.iter().enumerate().map(|(place, (name, floor))| (name.as_str(), (place, *floor))).collect();
    let mut wrong = Vec::new();
    for (file, text) in files("src", &[".rs"]) {
        let Some((own_place, own_floor)) = place.get(module_of(&file)).copied() else {
            assert!(matches!(file.as_str(), "src/lib.rs" | "src/main.rs"), "{file} is no module of lib.rs");
            continue;
        };
        if file.ends_with("tests.rs") {
            continue;
        }
        // In a file that stands in src itself `super` is the root of the crate, and would go unseen.
        let hidden = |line: &&str| line.trim_start_matches("pub ").starts_with("use super::");
        if file.matches('/').count() == 1
            && let Some(line) = product(&text).lines().find(hidden)
        {
            wrong.push(format!("{file}: {line}: say crate::"));
        }
        for name in named(product(&text)) {
            let Some((other_place, other_floor)) = place.get(name).copied() else { continue };
            // The domain is one piece. Above it a module uses only what stands above it in the list.
            let down =
                other_floor < own_floor || own_floor == 0 && other_floor == 0 || other_place <= own_place;
            if !down {
                wrong.push(format!("{file} uses crate::{name}, which stands higher"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The edges that use another one: who, whom, why. An edge knows the domain and one outside thing; each of these is
/// another step towards a knot, and has a reason.
const EDGES: [(&str, &str, &str); 22] = [
    ("wire", "held", "a body is read under its share of the bytes held"),
    ("decode", "held", "what waits is bounded by the bytes held"),
    ("decode", "niceness", "its thread lets the workers go first"),
    ("cgroup", "files", "the kernel's files are read with a bound"),
    ("tls", "files", "certificates are watched files"),
    ("authority", "tls", "pairs are proved and dates are read in the same way"),
    ("basic_auth", "files", "credentials are a watched file"),
    ("upstream", "held", "an answer is read under its share of the bytes held"),
    ("upstream", "wire", "both sides write slices and drop headers of one hop in the same way"),
    ("upstream", "turns", "a long answer is read in turns"),
    ("upstream", "descriptors", "the last descriptors are the admin port's"),
    ("deadlines", "drain", "the cut of the drain is every wait's end"),
    ("settle", "upstream", "an outcome is what it settles"),
    ("metrics", "in_force", "the policy in force is a gauge"),
    ("metrics", "tls", "why a handshake failed is a label"),
    ("memory", "metrics", "resident memory is a gauge"),
    ("source", "files", "a policy may be a watched file"),
    ("api_server", "tls", "the API server is asked with the same cryptography"),
    ("source", "api_server", "a policy may be a watched ConfigMap"),
    ("source", "in_force", "what a source holds is put in force"),
    ("source", "metrics", "reloads, refusals and the watch are counted"),
    ("source", "status", "what was refused stands on the status page"),
];

#[test]
fn edges_use_one_another_only_where_it_is_listed() {
    let edges: Vec<_> = floors().into_iter().filter(|(_, floor)| *floor == 1).map(|(name, _)| name).collect();
    let is_edge = |name: &str| edges.iter().any(|edge| edge == name);
    let mut unused: Vec<_> = EDGES.iter().map(|(user, used, _)| (*user, *used)).collect();
    let mut wrong = Vec::new();
    for (file, text) in files("src", &[".rs"]) {
        let user = module_of(&file);
        if !is_edge(user) || file.ends_with("tests.rs") {
            continue;
        }
        for used in named(product(&text)).into_iter().filter(|used| is_edge(used) && *used != user) {
            unused.retain(|pair| *pair != (user, used));
            if !EDGES.iter().any(|(listed, whom, _)| (*listed, *whom) == (user, used)) {
                wrong.push(format!("{file} uses crate::{used}: not in EDGES"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(unused.is_empty(), "in EDGES, and no longer so: {unused:?}");
}

/// Largest file of src: what is read in one sitting. Tests are long lists, and exempt.
const FILE_LIMIT_BYTES: usize = 24 * 1024;

#[test]
fn files_are_read_in_one_sitting() {
    let sources = files("src", &[".rs"]).into_iter().filter(|(file, _)| !file.ends_with("/tests.rs"));
    let large: Vec<_> = sources
        .filter(|(_, text)| text.len() > FILE_LIMIT_BYTES)
        .map(|(file, text)| format!("{file}: {} bytes, at most {FILE_LIMIT_BYTES} are allowed", text.len()))
        .collect();
    assert!(large.is_empty(), "{large:#?}");
}

#[test]
fn the_domain_does_no_io_reads_no_clock_and_writes_no_log() {
    let banned = [
        "tokio",
        "hyper",
        // The crate; Kubernetes' own names have the word too.
        "kube::",
        "tracing",
        "rustls",
        "SystemTime::now",
        "Instant::now",
        "std::fs",
        "std::net",
    ];
    let domain: Vec<_> =
        floors().into_iter().filter(|(_, floor)| *floor == 0).map(|(name, _)| name).collect();
    let mut wrong = Vec::new();
    for (file, text) in files("src", &[".rs"]) {
        if !domain.iter().any(|name| name == module_of(&file)) || file.ends_with("tests.rs") {
            continue;
        }
        for line in product(&text).lines().filter(|line| !line.trim_start().starts_with("//")) {
            let whole = |word: &str| {
                line.match_indices(word).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    !before.is_some_and(|letter| letter.is_ascii_alphanumeric() || letter == '_')
                })
            };
            wrong.extend(
                banned.iter().filter(|word| whole(word)).map(|word| format!("{file}: {word} in {line}")),
            );
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn modules_are_files_and_bear_the_name_of_no_crate_and_of_no_drawer() {
    let manifest = read("Cargo.toml");
    let crates: Vec<_> =
        manifest.lines().filter_map(|line| line.split_once(" = ")).map(|(name, _)| name.trim()).collect();
    for (file, _) in files("src", &[".rs"]) {
        let name = file.rsplit('/').next().expect("a name").trim_end_matches(".rs");
        assert_ne!(name, "mod", "{file}: foo.rs beside foo/, no mod.rs");
        let drawers = ["util", "utils", "common", "types", "helpers", "manager", "misc"];
        assert!(!drawers.contains(&name), "{file}: name what is in it");
        let is_crate =
            crates.iter().any(|krate| krate.replace('-', "_") == name) && !matches!(name, "lib" | "main");
        assert!(!is_crate, "{file} bears the name of a crate");
    }
}

#[test]
fn each_relaxed_lint_has_its_reason() {
    let mut wrong = Vec::new();
    for folder in ["src", "tests", "benches"] {
        for (file, text) in files(folder, &[".rs"]) {
            for (number, line) in text.lines().enumerate() {
                let relaxes =
                    line.trim_start().starts_with("#[allow(") || line.trim_start().starts_with("#![allow(");
                let rest: String = text.lines().skip(number).take(4).collect();
                if relaxes && !rest.split(")]").next().is_some_and(|attribute| attribute.contains("reason ="))
                {
                    wrong.push(format!("{file}:{}: {line}", number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The packages of a lock file, as name and version.
fn locked(path: &str) -> Vec<(String, String)> {
    let text = read(path);
    let value = |block: &str, key: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        line.trim_matches('"').to_owned()
    };
    text.split("[[package]]")
        .skip(1)
        .map(|block| (value(block, "name = "), value(block, "version = ")))
        .collect()
}

#[test]
fn what_is_fuzzed_is_what_is_built() {
    let (own, fuzzed) = (locked("Cargo.lock"), locked("fuzz/Cargo.lock"));
    let other: Vec<_> = fuzzed
        .iter()
        .filter(|(name, _)| own.iter().any(|(known, _)| known == name))
        .filter(|package| !own.contains(package))
        .collect();
    assert!(
        other.is_empty() && fuzzed.len() > 50,
        "cp Cargo.lock fuzz/ && (cd fuzz && cargo metadata >/dev/null): {other:?}"
    );
}

/// A word that is not ours, and the one that is.
const WORDS: [(&str, &str); 7] = [
    ("backend", "upstream, or the app"),
    ("whitelist", "name who is let in"),
    ("blacklist", "name who is kept out"),
    ("max timeout", "timeout is a Duration, limit is a bound on size or count"),
    ("sanity", "say what is checked"),
    ("TODO", "do it, or say in the closing note that it is missing"),
    ("FIXME", "mend it"),
];

#[test]
fn words_that_are_not_ours_stay_out() {
    let mut wrong = Vec::new();
    for folder in ["src", "docs", "benches"] {
        for (file, text) in files(folder, &[".rs", ".md"]) {
            for (word, instead) in WORDS {
                if text.contains(word) {
                    wrong.push(format!("{file}: {word:?}: {instead}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Compares a generated document with the file, or writes it.
fn generated(path: &str, expected: &str) {
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(root().join(path), expected).expect("the document is writable");
    }
    assert_eq!(
        read(path),
        expected,
        "{path} is not what the tables say: UPDATE_GOLDEN=1 cargo test --test house"
    );
}

const CHART: &str = "charts/callback-guard";

#[test]
fn the_schema_and_the_table_of_the_chart_are_what_its_values_say() {
    let entries = values::entries(&read(format!("{CHART}/values.yaml")));
    generated(&format!("{CHART}/values.schema.json"), &values::schema(&entries));
    let path = format!("{CHART}/README.md");
    let readme = read(&path);
    let (before, rest) = readme.split_once("<!-- values -->\n").expect("the table begins");
    let (_, after) = rest.split_once("<!-- /values -->").expect("the table ends");
    let table = values::table(&entries);
    generated(&path, &format!("{before}<!-- values -->\n{table}<!-- /values -->{after}"));
}

#[test]
fn the_chart_has_each_setting_of_a_sidecar_and_the_template_of_the_program() {
    let entries = values::entries(&read(format!("{CHART}/values.yaml")));
    let in_chart = entries.iter().filter(|entry| entry.path.len() == 2 && entry.path[0] == "sidecar");
    let in_chart: Vec<_> = in_chart.map(|entry| entry.path[1].as_str()).collect();
    let in_table = annotations::settings().map(|row| row.name).filter(|name| !IMAGE_SETTINGS.contains(name));
    assert_eq!(in_chart, in_table.collect::<Vec<_>>());
    let mut template = Vec::new();
    let config = AdmissionPolicy { values: Values::OfChart };
    assert_eq!(admission_policy::run(&config, &mut template, &mut Vec::new()), 0);
    generated(&format!("{CHART}/templates/_admission.tpl"), &String::from_utf8(template).expect("UTF-8"));
}

#[test]
fn the_version_of_the_chart_is_that_of_the_program() {
    let manifest: serde_json::Value =
        serde_saphyr::from_str(&read(format!("{CHART}/Chart.yaml"))).expect("Chart.yaml is YAML");
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!((&manifest["version"], &manifest["appVersion"]), (&version.into(), &version.into()));
    let images = manifest["annotations"]["artifacthub.io/images"].as_str().expect("a text");
    assert!(images.contains(&format!("callback-guard:{version}\n")), "{images}");
    assert_eq!(read("manifests/images.txt"), format!("callback-guard:{version}\n"));
}

/// The commands of docs/install.md are run by the test of the chart on a node, but for those that say that they are not.
#[test]
fn each_block_of_commands_of_the_installation_says_whether_it_is_tested() {
    let page = read("docs/install.md");
    let mut counts = BTreeMap::new();
    for (at, _) in page.match_indices("\n```sh\n") {
        let before = page[..at].trim_end().lines().next_back().unwrap_or_default();
        let mark = ["*Tested:*", "*Not tested:*"].into_iter().find(|mark| before.starts_with(mark));
        let mark = mark.unwrap_or_else(|| panic!("no mark before this block: {before:?}"));
        *counts.entry(mark).or_insert(0) += 1;
    }
    assert!(counts["*Tested:*"] >= 7 && counts["*Not tested:*"] <= 4, "{counts:?}");
}

#[test]
fn the_document_of_findings_is_the_table_the_program_uses() {
    let mut text = String::from(
        "# Findings: what is corrected in an app's answer, and what is only noticed\n\n\
         Generated from the table that the program uses (`src/verdict.rs`). The names stand in the header\n\
         `Callback-Guard-Finding`, in the log and in `callback_guard_findings_total`.\n\n\
         A correction changes the bytes it is about and no others: unknown fields, their order and the spelling of\n\
         numbers stay. An answer that needs none goes to OpenIM byte for byte.\n",
    );
    for row in &FINDINGS {
        let kind = row.becomes.map_or("noticed", |_| "corrected");
        write!(text, "\n## `{}` ({kind})\n\nFound: {}.\n\n", row.name, row.found).expect("a string");
        if let Some(becomes) = row.becomes {
            write!(text, "Becomes: {becomes}.\n\n").expect("a string");
        }
        writeln!(text, "Why: {}", row.why).expect("a string");
    }
    generated("docs/findings.md", &text);
}

#[test]
fn the_document_of_causes_and_commands_is_what_the_tables_say() {
    let mut text = String::from(
        "# Causes and commands\n\nGenerated from the tables that the program uses.\n\n\
         ## Causes\n\nEach is answered by the matching rule's fallback, and is a value of `Callback-Guard-Cause`.\n\n\
         | cause | when | counts for a breaker |\n|---|---|---|\n",
    );
    for cause in Cause::ALL {
        let counts = if cause.trips_breaker() { "yes" } else { "no" };
        writeln!(text, "| `{}` | {} | {counts} |", cause.label(), cause.when()).expect("a string");
    }
    text.push_str(
        "\n## Bounds behind `overloaded`\n\nThe metric `callback_guard_overloads_total` counts by `reason`, and the callback's log \
         line says the same in `detail`. [security.md](security.md#shares) has the rule of the shares.\n\n\
         | reason | detail | what to do |\n|---|---|---|\n",
    );
    for overload in Overload::ALL {
        writeln!(text, "| `{}` | {} | {} |", overload.label(), overload.detail(), overload.remedy())
            .expect("a string");
    }
    text.push_str("\n## Rejections\n\nA request that is no callback never reaches the app. Causes: ");
    let labels: Vec<_> = RejectionCause::ALL.iter().map(|cause| format!("`{}`", cause.label())).collect();
    writeln!(text, "{}.\n\n## Commands\n", labels.join(", ")).expect("a string");
    text.push_str("| command | phase | default allow | also known as |\n|---|---|---|---|\n");
    for command in command::all() {
        let phase = Phase::ALL.iter().find(|(_, phase)| *phase == command.phase).expect("a phase").0;
        let default = match command.default {
            SafeDefault::Plain => "plain".to_owned(),
            SafeDefault::Echo(fields) => format!("echoes {}", fields.join(", ")),
        };
        let aliases: Vec<_> = command::names()
            .filter(|(name, other)| other.name == command.name && *name != command.name)
            .map(|(name, _)| format!("`{name}`"))
            .collect();
        writeln!(text, "| `{}` | {phase} | {default} | {} |", command.name, aliases.join(", "))
            .expect("a string");
    }
    text.push_str(
        "\n## Notifications\n\nCommands that are sent for notifications too ([messages.md](messages.md)), and the servers that do.\n\n\
         | command | servers |\n|---|---|\n",
    );
    for command in command::all() {
        let servers = match command.notifications {
            Notifications::Never => continue,
            Notifications::Releases => "v3.8.x; not main",
            Notifications::Always => "all",
        };
        writeln!(text, "| `{}` | {servers} |", command.name).expect("a string");
    }
    generated("docs/causes-and-commands.md", &text);
}

#[test]
fn the_tables_of_the_document_of_events_are_those_the_program_uses() {
    let mut losses = String::from("| reason | when |\n|---|---|\n");
    for loss in Loss::ALL {
        writeln!(losses, "| `{}` | {} |", loss.label(), loss.when()).expect("a string");
    }
    let catalogue: serde_json::Value =
        serde_json::from_str(&read("src/callback/callbacks.json")).expect("the catalogue is JSON");
    let mut commands = String::from(
        "| command | key | needs an order | OpenIM sends it | an app recognizes a repeat by |\n|---|---|---|---|---|\n",
    );
    for command in command::all().iter().filter(|command| command.phase == Phase::After) {
        let entries = catalogue.as_array().expect("an array");
        let entry = entries.iter().find(|entry| entry["command"] == command.name).expect("an entry");
        let keys: Vec<_> = command
            .order_keys
            .iter()
            .map(|key| format!("{} (`{}`)", key.kind.label(), key.fields.join("`, `")))
            .collect();
        let keys = if keys.is_empty() { "none".to_owned() } else { keys.join(", else ") };
        let needs = if entry["needsOrder"] == true { "yes" } else { "no" };
        let text = |key: &str| entry[key].as_str().expect("a text").to_owned();
        let (repeats, dedupe) = (text("repeats"), text("dedupeBy"));
        writeln!(commands, "| `{}` | {keys} | {needs} | {repeats} | {dedupe} |", command.name)
            .expect("a string");
    }
    let path = "docs/after.md";
    let mut page = read(path);
    for (mark, table) in [("losses", losses), ("commands", commands)] {
        let (begin, end) = (format!("<!-- {mark} -->\n"), format!("<!-- /{mark} -->"));
        let (before, rest) = page.split_once(&begin).expect("the table begins");
        let (_, after) = rest.split_once(&end).expect("the table ends");
        page = format!("{before}{begin}{table}{end}{after}");
    }
    generated(path, &page);
}

/// A section of the reference of metrics: what one program registers.
fn metrics_section(title: &str, entries: &[Entry]) -> String {
    let mut text = format!("\n## {title}\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n");
    let mut labels: Vec<((&str, String), Vec<String>)> = Vec::new();
    for entry in entries {
        let (name, help) = (entry.name(), entry.help());
        assert!(!help.is_empty() && !help.ends_with('.') && !help.contains('|'), "{name}: {help:?}");
        let own = entry.labels();
        let names: Vec<_> = own.iter().map(|label| format!("`{}`", label.name)).collect();
        let audience = match entry.audience() {
            Audience::All => "",
            Audience::Loopback => " (on loopback)",
        };
        let names = names.join(", ");
        writeln!(text, "| `{name}` | {} | {names} | {help}{audience} |", entry.kind()).expect("a string");
        for label in own {
            assert!(!label.values.is_empty() && !label.values.contains('|'), "{name}: {label:?}");
            let key = (label.name, label.values);
            match labels.iter_mut().find(|(known, _)| *known == key) {
                Some((_, metrics)) => metrics.push(name.clone()),
                None => labels.push((key, vec![name.clone()])),
            }
        }
    }
    text.push_str("\n| label | values | of |\n|---|---|---|\n");
    for ((name, values), metrics) in labels {
        let metrics: Vec<_> = metrics.iter().map(|metric| format!("`{metric}`")).collect();
        writeln!(text, "| `{name}` | {values} | {} |", metrics.join(", ")).expect("a string");
    }
    text
}

#[test]
fn the_document_of_metrics_has_all_that_are_registered() {
    let mut text = String::from(
        "# Metrics\n\nGenerated from the code that registers them. The admin port serves them at `/metrics`, as OpenMetrics text.\n\n\
         Counters start at 0 with the process. A metric with labels may appear only with its first value. A histogram `NAME` is\n\
         the series `NAME_bucket`, `NAME_sum` and `NAME_count`.\n\n\
         Metrics marked (on loopback) show how full the guard is, which would guide an attack. So only callers on loopback see\n\
         them: a process of the pod, `kubectl port-forward POD 19090:19090` and then `curl http://localhost:19090/metrics`, or\n\
         the status page at `/`. A Prometheus outside the pod does not get them. Let it alert on what a full guard does:\n\
         `callback_guard_callbacks_total{cause=\"overloaded\"}`. For callers from elsewhere the text may be half a second old.\n",
    );
    text += &metrics_section("`callback-guard proxy`", Metrics::new(Counter::default()).entries());
    let controller = callback_guard::controller::metrics::Metrics::new(Counter::default());
    text += &metrics_section("`callback-guard controller`", controller.entries());
    generated("docs/metrics.md", &text);
}

#[test]
fn the_readme_has_every_cause_in_the_words_of_the_table() {
    let readme = read("README.md");
    let (_, rest) = readme.split_once("| cause | when |\n|---|---|\n").expect("the README's table of causes");
    let shown: Vec<_> = rest.lines().take_while(|line| line.starts_with('|')).collect();
    let row = |cause: Cause| format!("| `{}` | {} |", cause.label(), cause.when());
    assert_eq!(shown, Cause::ALL.map(row));
}

#[test]
fn the_document_of_annotations_is_the_table_the_program_uses() {
    let mut text = String::from(
        "# The sidecar in a pod\n\nGenerated from the tables that the program uses (`src/sidecar/`).\n\n\
         A pod gets the sidecar in one of two ways, and both add the same: `callback-guard inject -f` changes manifests\n\
         (Kubernetes 1.33 or later), and the policy printed by `callback-guard admission-policy` changes pods as the API\n\
         server creates them (Kubernetes 1.36 or later). [injection.md](injection.md) has the details.\n\n\
         ## Who gets it\n\n\
         The label `callback-guard.io/inject` is `enabled` or `disabled`, on a pod or on its namespace; the pod's own wins. For\n\
         a Deployment the pod's label is in `spec.template.metadata.labels`. The policy looks only at pods that ask by a label.\n\
         `inject -f` injects every pod of its files, unless it, its workload or its namespace is `disabled`.\n\n\
         ## Annotations\n\n\
         Each can be set on the pod (in a Deployment `spec.template.metadata.annotations`), on its namespace, or for the\n\
         whole installation with the flag `--set NAME=VALUE`. Annotations of the pod override those of the namespace, which override `--set`.\n\
         `inject -f` knows the annotations of a namespace from a Namespace document in the same run. Values are strings:\n\
         `callback-guard.io/listen-port: \"8443\"`. With an unknown annotation or a value out of its range the policy leaves the\n\
         pod plain and warns; `inject -f` reports an error.\n\n\
         | annotation | type | default | allowed | meaning |\n|---|---|---|---|---|\n",
    );
    let code = |text: &str| if text.contains('`') { text.to_owned() } else { format!("`{text}`") };
    for row in annotations::settings() {
        let is_value = row.kind.check(row.default).is_ok();
        let default = if is_value { code(row.default) } else { row.default.to_owned() };
        let (name, kind, range) = (row.name, row.kind.name(), row.kind.range());
        writeln!(text, "| `{PREFIX}{name}` | {kind} | {default} | {range} | {} |", row.meaning)
            .expect("a string");
    }
    text.push_str(
        "\nSet by the injection; do not set them yourself:\n\n| annotation | meaning |\n|---|---|\n",
    );
    for row in annotations::TABLE.iter().filter(|row| !row.is_setting() && row.name != INJECT) {
        writeln!(text, "| `{PREFIX}{}` | {} |", row.name, row.meaning).expect("a string");
    }
    text.push_str(
        "\nThe label `callback-guard.io/injected: VERSION-HASH` marks a pod that has the sidecar:\n\
         `kubectl get pods -A -l callback-guard.io/injected`. From the policy the hash is that of the policy and the settings of\n\
         the installation, from `inject -f` that of the sidecar. The MutatingAdmissionPolicy `callback-guard` has the label with the\n\
         value that it writes now.\n\n\
         ## Resources\n\n\
         The sidecar has no CPU limit unless one is set, because a LimitRange or a quota can refuse a pod for it. Where a quota\n\
         requires one, set `cpu-limit`; the default of a LimitRange is used as it is. A Guaranteed pod stays Guaranteed. A pod with resources of its own as a whole\n\
         (`spec.resources`) gets a sidecar without requests and limits, because those of the containers may not add up to more\n\
         than the pod's. A LimitRange or quota of the cluster can still refuse a pod: the message of the API server names it.\n\n\
         ## Why a pod has no sidecar\n\n\
         The policy warns with these names, on the pod and, for what a workload can know, on the workload that makes it.\n\
         `inject -f` skips the pod, or reports an error and prints nothing. The pods that did not ask, and those that are\n\
         `disabled`, are not looked at by the policy; `inject -f` knows no list of namespaces.\n\n\
         | name | meaning | what to do | policy | `inject -f` |\n|---|---|---|---|---|\n",
    );
    for reason in Reason::ALL {
        let words = reason.words();
        // The API server itself rejects a malformed pod.
        let never_warned = [Reason::NotAsked, Reason::Disabled, Reason::Malformed].contains(&reason);
        let policy = if never_warned { "-" } else { "warns" };
        let not_known =
            [Reason::NotAsked, Reason::OwnNamespace, Reason::NamespaceNotListed].contains(&reason);
        let fate = if reason.is_skipped() { "skips" } else { "error" };
        let inject = if not_known { "-" } else { fate };
        writeln!(text, "| `{}` | {} | {} | {policy} | {inject} |", words.name, words.meaning, words.remedy)
            .expect("a string");
    }
    text.push_str("\nOther warnings:\n\n| name | meaning | what to do |\n|---|---|---|\n");
    for words in Notice::ALL.map(Notice::words) {
        writeln!(text, "| `{}` | {} | {} |", words.name, words.meaning, words.remedy).expect("a string");
    }
    generated("docs/annotations.md", &text);
}

#[test]
fn the_documents_name_the_kubernetes_that_the_tests_run() {
    let module = read("tests/cluster/kubernetes/go.mod");
    let version = module.lines().find_map(|line| line.trim().strip_prefix("require k8s.io/kubernetes v"));
    let version =
        version.or_else(|| module.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes v")));
    let version = version.and_then(|rest| rest.split_whitespace().next()).expect("a version in go.mod");
    for document in ["README.md", "docs/injection.md"] {
        let text = read(document);
        for part in [&format!("Tested with Kubernetes {version}"), "1.33 or later", "1.36 or later"] {
            assert!(text.contains(part), "{document}: {part} is missing");
        }
    }
    // What it describes has no server.
    assert!(!read("docs/annotations.md").contains("webhook"));
}

/// What the document for developers of apps says before it goes through the commands.
const OF_ALL_ANSWERS: &str = "
## What of a refusal reaches the user

| OpenIM | `errMsg`, over REST and in the SDK | `errDlt`, over REST |
|---|---|---|
| v3.8.3 | code, `errMsg` and `errDlt` in one text: `5100 temporarily unavailable try later` | a Go stack trace of OpenIM's own, never the app's `errDlt` |
| main | the app's `errMsg` | the app's `errDlt` |

Write both for the user: on v3.8.3 `errDlt` is part of what the user reads. `errCode` must be at least 100. For 0 OpenIM aborts the operation
and then reports an error 500 (v3.8.3), or a success with nothing in it (main); main turns 1 to 99 and negative codes into 500. The guard
puts the rule's code there (`deny-code-too-small`). Refusals of pushes and of new conversations reach nobody: OpenIM only logs them.

Without the guard, if the app is down, v3.8.3 shows the user a Go stack trace of some 2,000 characters with the URL of the callback in it.

## Fields that end OpenIM

OpenIM writes some fields of an allow to where the message, or the update, has the same field, and does not look whether it has one. If it
has none, the service exits on v3.8.3, and every operation of that service fails until it is restarted; v3.8.3-patch.16 and main fail the
operation (errCode 2 and 500). By default the guard leaves these fields out of an allow, keeps every other byte, logs a WARN, and counts the
finding [`crash-prevented`](findings.md#crash-prevented-corrected):

| answer to | field | left out |
|---|---|---|
| `callbackBeforeMsgModifyCommand` | `offlinePushInfo` | always: the request does not tell whether the message has one |
| `callbackBeforeUpdateUserInfoExCommand` | `ex` | unless the request has one, and OpenIM's own server sends `null` even if the user changes it |
| `callbackBeforeUpdateUserInfoExCommand` | `nickName`, `faceURL` | if the request has `null` |

What an app must know: a field that was left out is not applied. The `ex` that the user sent is stored, not the one of the answer; to clean
it, write it through OpenIM's API after `callbackAfterUpdateUserInfoExCommand`. The text of a push belongs in the answer to
`callbackBeforeOfflinePushCommand`.

If your OpenIM has such fields, or checks for them, `crashingFields: Pass` in `defaults` or in a rule lets them through; they are then
only noticed (`may-crash`), as in `mode: Observe`.
";

#[test]
fn the_document_for_app_developers_is_what_the_catalogue_says() {
    let catalogue: Vec<serde_json::Value> =
        serde_json::from_str(include_str!("../src/callback/callbacks.json")).expect("the catalogue");
    let mut text = String::from(
        "# How to answer each callback\n\n\
         For the developer of an app. Generated from the catalogue that the program is built from\n\
         (`src/callback/callbacks.json`, read in OpenIM's own code).\n\n\
         To allow: `{\"actionCode\":0,\"errCode\":0,\"errMsg\":\"\",\"errDlt\":\"\",\"nextCode\":0}`.\n\
         To refuse: `actionCode` 0, `nextCode` 1, `errCode` 5000 to 9999, and the texts for the user in `errMsg` and `errDlt`.\n\
         OpenIM looks at nothing else: not at the HTTP status, and at `errCode` only of a refusal. The codes are numbers,\n\
         never strings. What is wrong with an answer, and what the guard makes of it: [findings.md](findings.md).\n\n\
         After-commands are listed in [causes-and-commands.md](causes-and-commands.md): OpenIM reads no answer to them, and the\n\
         guard delivers them in the background. Answer 2xx when you have the event, 503 or 429 to get it again later, and another\n\
         status to refuse it ([after.md](after.md)).\n",
    );
    text.push_str(OF_ALL_ANSWERS);
    for entry in catalogue.iter().filter(|entry| entry["kind"] == "before") {
        write!(text, "\n## `{}`\n\n", entry["command"].as_str().expect("a name")).expect("a string");
        write!(text, "Sent by {}.", entry["sentBy"].as_str().unwrap_or("OpenIM")).expect("a string");
        for (what, key) in
            [("A refusal", "effectOfDeny"), ("No usable answer, without the guard", "effectOfError")]
        {
            if let Some(effect) = entry[key].as_str() {
                write!(text, "\n{what}: {effect}.").expect("a string");
            }
        }
        text.push('\n');
        let effects = entry["effectOfResponseFields"].as_object().expect("an object");
        let named: Vec<_> = effects.iter().filter(|(field, _)| !field.starts_with('_')).collect();
        if named.is_empty() {
            text.push_str("\nOnly the five common fields are read.\n");
        } else {
            text.push_str("\n| field | what OpenIM does with it |\n|---|---|\n");
            for (field, effect) in named {
                let effect = effect.as_str().expect("a text").replace('|', "\\|");
                writeln!(text, "| `{field}` | {effect} |").expect("a string");
            }
        }
        for note in entry["notes"].as_array().into_iter().flatten() {
            write!(text, "\n- {}\n", note.as_str().expect("a text")).expect("a string");
        }
    }
    generated("docs/answers.md", &text);
}
