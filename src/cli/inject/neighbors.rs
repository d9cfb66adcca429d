//! What manifests say beside their pods: the namespaces, whose annotations are settings, and the Services.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use crate::sidecar::annotations::{self, Annotation, INJECT, PREFIX, label_pointer};
use crate::sidecar::service::{self, Service};
use crate::sidecar::{Upstream, contradictions_of_namespace, unsupported_label};

/// The namespaces and Services of a run.
#[derive(Clone, Debug, Default)]
pub(super) struct Neighbors {
    /// The metadata of each namespace.
    namespaces: BTreeMap<String, Json>,
    services: Vec<Service>,
    /// The annotations of namespaces that are wrong: the namespace, and a pointer within it.
    wrong: Vec<(String, String)>,
}

/// Whether an object of this kind is worth a look.
pub(super) fn is_of_interest(kind: &str) -> bool {
    matches!(kind, "Namespace" | "Service") || kind.ends_with("List")
}

impl Neighbors {
    /// Takes down the objects of a document, those of lists too. Returns what is wrong with the labels and annotations of
    /// namespaces: a pointer within the document, and the problem.
    pub(super) fn add(&mut self, document: &Json) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        self.collect(document, "", &mut problems);
        problems
    }

    fn collect(&mut self, object: &Json, at: &str, problems: &mut Vec<(String, String)>) {
        let text = |pointer: &str| object.pointer(pointer).and_then(Json::as_str);
        let list = text("/kind").and_then(|kind| kind.strip_suffix("List"));
        if let (Some(of), Some(Json::Array(items))) = (list, object.get("items")) {
            for (index, item) in items.iter().enumerate() {
                let mut item = item.clone();
                if let Some(item) = item.as_object_mut().filter(|_| !of.is_empty()) {
                    // Those of a typed list need not say what they are.
                    item.entry("kind").or_insert_with(|| of.into());
                    let version = object.get("apiVersion").cloned().unwrap_or_default();
                    item.entry("apiVersion").or_insert(version);
                }
                self.collect(&item, &format!("{at}/items/{index}"), problems);
            }
        }
        self.services.extend(Service::of(object));
        let (Some("Namespace"), Some("v1"), Some(name)) =
            (text("/kind"), text("/apiVersion"), text("/metadata/name"))
        else {
            return;
        };
        let metadata = object.get("metadata").cloned().unwrap_or_default();
        let map = |map: &str| metadata.get(map).and_then(Json::as_object).into_iter().flatten();
        for (_, value) in map("labels").filter(|(key, _)| key.strip_prefix(PREFIX) == Some(INJECT)) {
            if !matches!(value.as_str(), Some("enabled" | "disabled")) {
                let message = unsupported_label(&value.to_string());
                problems.push((format!("{at}{}", label_pointer(INJECT)), message));
            }
        }
        for (key, value) in map("annotations") {
            let Some(name) = key.strip_prefix(PREFIX) else { continue };
            if let Err(message) = annotations::read(name, value) {
                problems.push((format!("{at}{}", Annotation::pointer(name)), message));
            }
        }
        let contradictions = contradictions_of_namespace(&metadata);
        problems.extend(
            contradictions.into_iter().map(|(pointer, message)| (format!("{at}/metadata{pointer}"), message)),
        );
        let of_this = problems.iter().filter_map(|(pointer, _)| pointer.strip_prefix(at));
        self.wrong.extend(of_this.map(|pointer| (name.to_owned(), pointer.to_owned())));
        self.namespaces.insert(name.to_owned(), metadata);
    }

    /// Whether this annotation of a namespace was reported with it.
    pub(super) fn has_problem(&self, namespace: Option<&str>, pointer: &str) -> bool {
        self.wrong.iter().any(|(name, wrong)| namespace == Some(name) && wrong == pointer)
    }

    /// The metadata of a namespace, if a manifest has it.
    pub(super) fn namespace(&self, name: &str) -> Option<&Json> {
        self.namespaces.get(name)
    }

    /// What the Services say about a pod that got the sidecar with these ports.
    pub(super) fn notes(
        &self,
        pod: &Json,
        namespace: Option<&str>,
        upstream: Upstream,
        ports: [u32; 2],
    ) -> Vec<String> {
        service::notes(&self.services, namespace, pod, upstream, ports)
    }
}
