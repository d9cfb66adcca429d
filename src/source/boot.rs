//! What serves before the API server has said anything: the mounted file, else what was kept on disk, else the built-in
//! defaults.
//!
//! What was kept stands first where it was written later than the file: the kubelet brings a mounted ConfigMap up to
//! date within a minute or two, the watch within a second, and a container that dies in between must not come back with
//! the policy before the last. Each source that cannot be used is told, and the next one is looked at.

use std::path::Path;
use std::time::SystemTime;

use tracing::{debug, error};

use super::cache::{Cache, Kept};
use super::config_map::Name;
use super::{Publisher, compile, compile_override, file, shown};
use crate::in_force::SourceKind;

/// Where to look.
#[derive(Clone, Copy, Debug, Default)]
pub struct Places<'a> {
    /// `--policy-file`
    pub policy_file: Option<&'a Path>,
    /// `--override-file`
    pub override_file: Option<&'a Path>,
    /// `--policy-cache`, with the ConfigMap of `--policy-configmap`.
    pub cache: Option<(&'a Cache, &'a Name)>,
    /// Whether a ConfigMap is watched. The policy file then is usually that ConfigMap, mounted, and both may come later:
    /// a missing file is a problem only if the cache knows that there was a ConfigMap.
    pub watched: bool,
}

/// Why no source holds a policy that can be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NoPolicy(
    /// A line for each problem, beginning with the flag of its source; empty where no source was named.
    pub Vec<String>,
);

/// Puts the first good policy in force, and an override beside it. Gives what the cache held, good or not, for who goes
/// on keeping it.
///
/// An override comes from its file where that is there, or where the policy came from its file: a mounted ConfigMap
/// without that key says that there is none. Else it comes from the cache, where its time is not over.
///
/// # Errors
///
/// [`NoPolicy`], with the built-in defaults in force.
pub fn boot(places: Places<'_>, publisher: &Publisher) -> (Kept, Result<(), NoPolicy>) {
    let mut problems = Vec::new();
    let mut flagged = |flag: &str, reason: &str| {
        problems.extend(reason.lines().map(|line| format!("{flag}: {line}")));
    };
    let kept = match places.cache.map(|(cache, name)| cache.load(name)) {
        Some(Ok(kept)) => kept,
        Some(Err(reason)) => {
            error!(reason, "What was kept on disk (--policy-cache) is not used");
            flagged("--policy-cache", &reason);
            Kept::default()
        }
        None => Kept::default(),
    };
    let mut order = [SourceKind::File, SourceKind::Cache];
    if is_newer(places) {
        order.reverse();
    }
    let may_come_later = places.watched && kept == Kept::default();
    let missing = |path: &Path| matches!(path.try_exists(), Ok(false));
    let (mut from, mut refused) = (None, None);
    for source in order {
        let loaded = match (source, places.policy_file, &kept.policy, places.cache) {
            _ if from.is_some() => break,
            (SourceKind::File, Some(path), ..) => ("--policy-file", shown(path), file::policy(path)),
            (SourceKind::Cache, _, Some(text), Some((cache, _))) => {
                ("--policy-cache", shown(&cache.path()), compile(text))
            }
            _ => continue,
        };
        let (flag, place, loaded) = loaded;
        match loaded {
            Ok((policy, warnings)) => {
                let of_map =
                    places.cache.map(|(_, name)| format!("{name} resourceVersion {}", kept.revision));
                let revision = of_map.filter(|_| source == SourceKind::Cache).unwrap_or(place);
                publisher.policy(policy, &warnings, source, revision);
                from = Some(source);
            }
            Err(reason) => {
                flagged(flag, &reason);
                if may_come_later && places.policy_file.is_some_and(missing) {
                    debug!(policy.from = place, "No policy file yet; the ConfigMap is awaited");
                } else {
                    refused.get_or_insert((place, reason));
                }
            }
        }
    }
    // Told last: what was put in force from elsewhere mends nothing of it.
    if let Some((from, reason)) = refused {
        publisher.refused_policy(&from, reason);
    }
    boot_override(places, from, &kept, publisher);
    (kept, if from.is_some() { Ok(()) } else { Err(NoPolicy(problems)) })
}

/// Whether the cache was written later than a policy file that is there.
fn is_newer(places: Places<'_>) -> bool {
    let written = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
    let kept = places.cache.and_then(|(cache, _)| written(&cache.path()));
    let mounted = places.policy_file.and_then(written);
    kept.zip(mounted).is_some_and(|(kept, mounted)| kept > mounted)
}

fn boot_override(places: Places<'_>, policy_from: Option<SourceKind>, kept: &Kept, publisher: &Publisher) {
    let mounted = places.override_file.filter(|path| match policy_from {
        Some(SourceKind::File) => true,
        Some(SourceKind::Cache) if is_newer(places) => false,
        _ => path.exists(),
    });
    if let Some(path) = mounted {
        return match file::over(path) {
            Ok((over, warnings)) => publisher.over(over, &warnings),
            Err(reason) => publisher.refused_override(&shown(path), reason),
        };
    }
    match compile_override(kept.over.as_deref().unwrap_or_default()) {
        Ok((Some(over), warnings)) if over.active(SystemTime::now()) => publisher.over(Some(over), &warnings),
        Ok(_) => {}
        Err(reason) => publisher.refused_override("--policy-cache", reason),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::files::tests::Folder;
    use crate::metrics::Metrics;

    struct Pod {
        folder: Folder,
        cache: Cache,
        name: Name,
        publisher: Publisher,
    }

    impl Pod {
        fn new() -> Pod {
            let folder = Folder::new();
            let cache = Cache::new(&folder.path("cache"));
            let metrics = Arc::new(Metrics::new(prometheus_client::metrics::counter::Counter::default()));
            let name = "shop/policy".parse().expect("valid");
            Pod { folder, cache, name, publisher: Publisher::new(metrics).0 }
        }

        fn keep(&self, policy: Option<&str>, over: Option<&str>) {
            let text = json!({
                "configmap": "shop/policy", "resourceVersion": "7", "policy": policy, "override": over,
            });
            fs::create_dir_all(self.folder.path("cache")).expect("a folder");
            fs::write(self.cache.path(), text.to_string()).expect("writable");
        }

        fn file(&self, name: &str) -> PathBuf {
            self.folder.path(name)
        }

        fn boot(&self) -> Result<(), Vec<String>> {
            let (policy, over) = (self.file("policy.yaml"), self.file("override.yaml"));
            let cache = Some((&self.cache, &self.name));
            let places =
                Places { policy_file: Some(&policy), override_file: Some(&over), cache, watched: true };
            boot(places, &self.publisher).1.map_err(|NoPolicy(problems)| problems)
        }

        fn source(&self) -> &'static str {
            self.publisher.current().source.label()
        }

        fn over(&self) -> Option<String> {
            self.publisher.current().over.as_ref().map(|over| over.reason().to_owned())
        }
    }

    fn over(reason: &str, seconds_from_now: i64) -> String {
        let until = crate::tls::now() + seconds_from_now;
        let until = k8s_openapi::jiff::Timestamp::from_second(until).expect("a time").to_string();
        format!("answer: Allow\nuntil: {until:?}\nreason: {reason}")
    }

    #[test]
    fn the_file_comes_first_then_what_was_kept_then_the_built_in_policy() {
        let pod = Pod::new();
        pod.keep(Some("mode: Observe"), None);
        pod.folder.put("policy.yaml", "mode: Enforce");
        assert_eq!((pod.boot(), pod.source()), (Ok(()), "file"));
        assert_eq!(pod.publisher.refused(), [None, None]);

        for broken in [Some("mode: Wrong"), None] {
            let pod = Pod::new();
            pod.keep(Some("mode: Observe"), None);
            broken.map(|text| pod.folder.put("policy.yaml", text));
            assert_eq!((pod.boot(), pod.source()), (Ok(()), "cache"));
            assert_eq!(pod.publisher.current().revision, "shop/policy resourceVersion 7");
            assert!(pod.publisher.refused()[0].is_some(), "the file waits to be mended all the same");
        }

        let pod = Pod::new();
        let problems = pod.boot().expect_err("nothing is there");
        assert_eq!(pod.source(), "builtin");
        assert!(problems.len() == 1 && problems[0].starts_with("--policy-file: "), "{problems:?}");
    }

    #[test]
    fn a_missing_file_is_refused_unless_a_config_map_may_still_come() {
        let missing = |watched| {
            let pod = Pod::new();
            let file = pod.file("policy.yaml");
            let places = Places { policy_file: Some(&file), watched, ..Places::default() };
            assert!(boot(places, &pod.publisher).1.is_err(), "there is no policy either way");
            pod.publisher.refused()[0].is_some()
        };
        assert!(missing(false));
        assert!(!missing(true));
        let pod = Pod::new();
        pod.folder.put("policy.yaml", "mode: Wrong");
        pod.boot().expect_err("nothing good is there");
        assert!(pod.publisher.refused()[0].is_some(), "it is there, and broken");
        let pod = Pod::new();
        pod.keep(None, Some(&over("kept", 3600)));
        pod.boot().expect_err("no policy is there");
        assert!(pod.publisher.refused()[0].is_some(), "there was a ConfigMap");
    }

    #[test]
    fn what_was_kept_later_than_the_file_was_written_comes_first() {
        let pod = Pod::new();
        pod.folder.put("policy.yaml", "mode: Enforce");
        pod.folder.put("override.yaml", over("mounted", 3600));
        let mounted = fs::File::options().write(true).open(pod.file("policy.yaml")).expect("it is there");
        let before = SystemTime::now() - std::time::Duration::from_secs(60);
        mounted.set_modified(before).expect("a file of the test");
        pod.keep(Some("mode: Observe"), None);
        assert_eq!((pod.boot(), pod.source()), (Ok(()), "cache"));
        assert_eq!(pod.over(), None, "the newer ConfigMap has none");
        pod.keep(Some("mode: Retired"), None);
        let pod = Pod { publisher: Pod::new().publisher, ..pod };
        assert_eq!((pod.boot(), pod.source()), (Ok(()), "file"), "a broken one gives way");
        assert!(pod.publisher.refused()[0].is_some());
    }

    #[test]
    fn what_was_kept_and_is_no_policy_any_more_is_told_and_the_next_serves() {
        let pod = Pod::new();
        pod.keep(Some("mode: Retired"), None);
        let problems = pod.boot().expect_err("nothing good is there");
        assert_eq!(pod.source(), "builtin");
        assert!(problems[1].starts_with("--policy-cache: mode: Unsupported value"), "{problems:?}");
        fs::write(pod.cache.path(), "half").expect("writable");
        let problems = pod.boot().expect_err("nothing good is there");
        assert!(problems[0].starts_with("--policy-cache: ") && problems.len() == 2, "{problems:?}");
    }

    #[test]
    fn an_override_is_kept_until_its_end_and_gives_way_to_the_file_s() {
        let pod = Pod::new();
        pod.keep(Some(""), Some(&over("kept", 3600)));
        assert_eq!((pod.boot(), pod.over().as_deref()), (Ok(()), Some("kept")));
        pod.folder.put("override.yaml", over("mounted", 3600));
        assert_eq!((pod.boot(), pod.over().as_deref()), (Ok(()), Some("mounted")));

        let pod = Pod::new();
        pod.keep(Some(""), Some(&over("kept", -1)));
        assert_eq!((pod.boot(), pod.over()), (Ok(()), None), "its time is over");

        let pod = Pod::new();
        pod.keep(Some(""), Some(&over("kept", 3600)));
        pod.folder.put("policy.yaml", "");
        assert_eq!((pod.boot(), pod.over()), (Ok(()), None), "the mounted ConfigMap has none");
    }
}
