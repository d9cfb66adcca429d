//! What manifests say beside their pods: the namespaces, whose annotations are settings, and the Services.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use crate::sidecar::annotations::{self, INJECT, PREFIX};
use crate::sidecar::patch::escaped;
use crate::sidecar::service::Service;
use crate::sidecar::{Upstream, unsupported_label};

/// The namespaces and Services of a run.
#[derive(Clone, Debug, Default)]
pub(super) struct Surroundings {
    /// The metadata of each namespace.
    namespaces: BTreeMap<String, Json>,
    services: Vec<Service>,
}

impl Surroundings {
    /// Takes down the objects of a document, those of lists too. Returns what is wrong with the labels and annotations of
    /// namespaces: a pointer within the document, and the problem.
    pub(super) fn add(&mut self, document: &Json) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        self.collect(document, "", &mut problems);
        problems
    }

    fn collect(&mut self, object: &Json, at: &str, problems: &mut Vec<(String, String)>) {
        let text = |pointer: &str| object.pointer(pointer).and_then(Json::as_str);
        if let (Some("List"), Some(Json::Array(items))) = (text("/kind"), object.get("items")) {
            for (index, item) in items.iter().enumerate() {
                self.collect(item, &format!("{at}/items/{index}"), problems);
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
        for (key, value) in map("labels").filter(|(key, _)| key.strip_prefix(PREFIX) == Some(INJECT)) {
            if !matches!(value.as_str(), Some("enabled" | "disabled")) {
                let message = unsupported_label(&value.to_string());
                problems.push((format!("{at}/metadata/labels/{}", escaped(key)), message));
            }
        }
        for (key, value) in map("annotations") {
            let Some(name) = key.strip_prefix(PREFIX) else { continue };
            if let Err(message) = annotations::read(name, value) {
                problems.push((format!("{at}/metadata/annotations/{}", escaped(key)), message));
            }
        }
        self.namespaces.insert(name.to_owned(), metadata);
    }

    /// The metadata of a namespace, if a manifest has it.
    pub(super) fn namespace(&self, name: &str) -> Option<&Json> {
        self.namespaces.get(name)
    }

    /// What the Services say about a pod that got the sidecar.
    pub(super) fn notes(
        &self,
        pod: &Json,
        namespace: Option<&str>,
        upstream: Upstream,
        listen_port: u32,
    ) -> Vec<String> {
        self.services
            .iter()
            .flat_map(|service| service.notes(namespace, pod, upstream, listen_port))
            .collect()
    }
}
