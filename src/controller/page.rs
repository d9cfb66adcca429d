//! What the admin port of the controller shows: what it looks after, what is wrong, and since when.

use std::fmt::Write as _;
use std::rc::Rc;
use std::time::{Instant, SystemTime};

use http::Method;
use serde_json::{Value, json};

use super::Shared;
use super::pods::STATES;
use crate::admin::page::{begin, escaped, problem, row};
use crate::admin::{self, Pages, Route};
use crate::metrics::admin::AdminMetrics;
use crate::metrics::catalog::Audience;
use crate::tls::Utc;

/// The pages.
#[derive(Debug)]
pub struct ControllerPages {
    shared: Rc<Shared>,
    started: Instant,
}

impl ControllerPages {
    /// The pages of a controller that began at this moment.
    pub fn new(shared: Rc<Shared>, started: Instant) -> ControllerPages {
        ControllerPages { shared, started }
    }

    fn role(&self) -> String {
        let leadership = &self.shared.leadership;
        match leadership.holder() {
            Some(_) if self.shared.metrics.is_leader() => "leads".to_owned(),
            Some(holder) => format!("waits; {holder} leads"),
            None => "waits; nobody leads".to_owned(),
        }
    }

    /// All that is known, as JSON.
    fn status(&self) -> Value {
        let Shared { config, findings, metrics, leadership, .. } = &*self.shared;
        let findings = findings.list().into_iter().map(|found| {
            json!({
                "about": found.about, "reason": found.reason, "text": found.text, "since": rfc3339(found.since),
                "urgent": found.urgent,
            })
        });
        let known = metrics.namespaces();
        let namespaces = config.namespaces.iter().map(|served| {
            let of = known.get(&served.name).cloned().unwrap_or_default();
            json!({
                "name": served.name, "pods": of.pods, "invalidPolicies": of.broken,
                "certificateExpires": of.not_after.map(|seconds| Utc(seconds).to_string()), "externalTLS": served.external_tls,
            })
        });
        json!({
            "identity": config.identity,
            "leader": leadership.holder(),
            "leads": metrics.is_leader(),
            "leaseProblem": leadership.problem(),
            "caExpires": self.ca_expires(),
            "namespaces": namespaces.collect::<Vec<_>>(),
            "trustNamespaces": config.trust_namespaces,
            "findings": findings.collect::<Vec<_>>(),
        })
    }

    fn ca_expires(&self) -> Option<String> {
        Some(self.shared.metrics.authority_not_after())
            .filter(|not_after| *not_after > 0)
            .map(|seconds| Utc(seconds).to_string())
    }
}

impl Pages for ControllerPages {
    const ROUTES: &'static [Route<ControllerPages>] =
        &[Route { path: "/status", method: Method::GET, answer: |pages| admin::json(&pages.status()) }];

    fn missing(&self) -> Vec<String> {
        let leadership = &self.shared.leadership;
        if leadership.is_known() {
            return Vec::new();
        }
        vec![leadership.problem().map_or("lease".to_owned(), |problem| format!("lease ({problem})"))]
    }

    fn metrics(&self, audience: Audience) -> String {
        self.shared.metrics.text(audience)
    }

    fn admin_metrics(&self) -> &AdminMetrics {
        self.shared.metrics.admin()
    }

    fn page(&self) -> String {
        let Shared { config, findings, metrics, leadership, .. } = &*self.shared;
        let mut out = begin("callback-guard controller");
        if let Some(reason) = leadership.problem() {
            problem(&mut out, "The Lease cannot be watched", &reason);
        }
        out.push_str("<table>");
        row(&mut out, "up", &format!("{} s", self.started.elapsed().as_secs()));
        row(&mut out, "replica", &config.identity);
        row(&mut out, "role", &self.role());
        row(&mut out, "CA expires", &self.ca_expires().unwrap_or_else(|| "not known here".to_owned()));
        row(&mut out, "CA published also in", &config.trust_namespaces.join(", "));
        out.push_str("</table>");
        let list = findings.list();
        let _ =
            write!(out, "<h2>Findings: {}</h2><table><tr><th>since<th>about<th>reason<th>what", list.len());
        for found in list {
            let class = if found.urgent { " class=bad" } else { "" };
            let (since, about, text) = (rfc3339(found.since), escaped(&found.about), escaped(&found.text));
            let _ = write!(out, "<tr><td>{since}<td>{about}<td{class}>{}<td class=text>{text}", found.reason);
        }
        let _ = write!(out, "</table><h2>Namespaces: {}</h2><table><tr><th>name", config.namespaces.len());
        for state in STATES {
            let _ = write!(out, "<th>{state}");
        }
        out.push_str("<th>invalid policies<th>certificate expires");
        let known = metrics.namespaces();
        for served in &config.namespaces {
            let of = known.get(&served.name).cloned().unwrap_or_default();
            let _ = write!(out, "<tr><td>{}", escaped(&served.name));
            for state in STATES {
                let _ = write!(out, "<td>{}", of.pods.get(state).map_or("?".to_owned(), i64::to_string));
            }
            let expires = match of.not_after {
                Some(not_after) => Utc(not_after).to_string(),
                None if served.external_tls => "not the controller's".to_owned(),
                None => "none yet".to_owned(),
            };
            let _ = write!(out, "<td>{}<td>{expires}", of.broken);
        }
        out.push_str("</table><p class=dim><a href=/status>status</a> · <a href=/metrics>metrics</a>");
        out
    }
}

fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Utc(i64::try_from(since.as_secs()).unwrap_or(i64::MAX)).to_string()
}
