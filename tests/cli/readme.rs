//! The README's examples are what the program takes, and say what is there.

use std::fs;

use crate::program::{Folder, repository};

fn readme() -> String {
    fs::read_to_string(repository("README.md")).expect("the README")
}

/// The blocks of YAML, as they stand.
fn examples() -> Vec<String> {
    let text = readme();
    let blocks = text.split("```yaml\n").skip(1);
    blocks.map(|rest| rest.split("```").next().unwrap_or_default().to_owned()).collect()
}

/// An override is good for a week before its end, and the README's is not written anew each week.
fn of_today(example: &str) -> String {
    let Some((before, rest)) = example.split_once("until: \"") else { return example.to_owned() };
    let (_, after) = rest.split_once('"').expect("a quoted time");
    let hour = std::time::SystemTime::now() + std::time::Duration::from_secs(3600);
    let seconds = hour.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    format!("{before}until: \"{}\"{after}", rfc3339(seconds))
}

/// Seconds since 1970 as a date and a time (days to a civil date: Hinnant's `civil_from_days`).
fn rfc3339(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let (day, month) =
        (day_of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[test]
fn every_example_of_the_readme_is_without_a_problem_or_a_warning() {
    let examples = examples();
    assert_eq!(examples.len(), 3, "a policy, an override, and manifests: {examples:#?}");
    for example in examples {
        let folder = Folder::new();
        folder.write("example.yaml", &of_today(&example));
        folder.run("check example.yaml").code(0).err("").out_has("0 problems, 0 warnings");
        // The negative twin: what is written with a slip is seen.
        let slip = of_today(&example).replacen("allback: ", "allbak: ", 1).replacen("answer: ", "answr: ", 1);
        folder.write("example.yaml", &slip);
        folder.run("check example.yaml").code(1);
    }
}

#[test]
fn the_times_of_the_examples_are_written_as_the_calendar_has_them() {
    for (seconds, text) in [
        (0, "1970-01-01T00:00:00Z"),
        (951_782_400, "2000-02-29T00:00:00Z"),
        (1_796_119_200, "2026-12-01T10:00:00Z"),
    ] {
        assert_eq!(rfc3339(seconds), text);
    }
}

#[test]
fn what_the_readme_points_at_is_there() {
    let text = readme();
    for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        match target.strip_prefix('#') {
            Some(anchor) => {
                let heading =
                    |line: &str| line.trim_start_matches(['#', ' ']).to_lowercase().replace(' ', "-");
                assert!(
                    text.lines().any(|line| line.starts_with('#') && heading(line) == anchor),
                    "{target}"
                );
            }
            None => assert!(repository(target).exists(), "{target}"),
        }
    }
    // The last lines of the demo send their reader there.
    assert!(text.contains("\n## On Kubernetes\n"), "the demo says that it is there");
}
