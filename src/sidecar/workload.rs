//! Where an object of Kubernetes holds pods: the pod itself, the template of a workload, and lists of those.

use serde_json::Value;

/// Kinds that hold one pod: group of the API, kind, and the JSON pointer to what has the pod's metadata and spec.
const KINDS: [(&str, &str, &str); 8] = [
    ("", "Pod", ""),
    ("", "ReplicationController", "/spec/template"),
    ("apps", "Deployment", "/spec/template"),
    ("apps", "StatefulSet", "/spec/template"),
    ("apps", "DaemonSet", "/spec/template"),
    ("apps", "ReplicaSet", "/spec/template"),
    ("batch", "Job", "/spec/template"),
    ("batch", "CronJob", "/spec/jobTemplate/spec/template"),
];

/// An object that holds a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// `Deployment`, say.
    pub kind: String,
    /// Its name; empty where it has none, as with `generateName`.
    pub name: String,
    /// Its namespace, where the manifest says so.
    pub namespace: Option<String>,
    /// JSON pointer to the object itself; empty outside a list.
    pub object: String,
    /// JSON pointer to the pod within the document. Nothing has to be there.
    pub pod: String,
}

impl Workload {
    /// `Deployment shop/app`, as far as the manifest says.
    pub fn title(&self) -> String {
        match (&self.namespace, self.name.as_str()) {
            (_, "") => self.kind.clone(),
            (Some(namespace), name) => format!("{} {namespace}/{name}", self.kind),
            (None, name) => format!("{} {name}", self.kind),
        }
    }
}

/// The pods of a document, in its order: none for a Service, several for a list. A custom resource that shares
/// a kind's name is none of ours.
pub fn workloads(document: &Value) -> Vec<Workload> {
    let mut found = Vec::new();
    collect(document, String::new(), None, &mut found);
    found
}

/// Whether an object of this kind is worth a look: the kinds above, and lists.
pub fn may_hold_pods(kind: &str) -> bool {
    kind.ends_with("List") || KINDS.iter().any(|(_, name, _)| *name == kind)
}

/// `of` is the version and kind that the items of a typed list need not repeat.
fn collect(object: &Value, at: String, of: Option<(&str, &str)>, found: &mut Vec<Workload>) {
    let own = |key: &str| object.get(key).and_then(Value::as_str);
    let version = own("apiVersion").or(of.map(|(version, _)| version)).unwrap_or_default();
    let kind = own("kind").or(of.map(|(_, kind)| kind)).unwrap_or_default();
    if let (Some(kind_of_items), Some(Value::Array(items))) = (kind.strip_suffix("List"), object.get("items"))
    {
        let of = (!kind_of_items.is_empty()).then_some((version, kind_of_items));
        for (index, item) in items.iter().enumerate() {
            // A list may hold a list; nobody nests them deeper than the reader of documents allows.
            collect(item, format!("{at}/items/{index}"), of, found);
        }
        return;
    }
    let group = version.split_once('/').map_or("", |(group, _)| group);
    let known = KINDS.iter().find(|(of_group, name, _)| *of_group == group && *name == kind);
    if let Some((_, kind, template)) = known {
        let metadata = |key: &str| {
            let text = object.get("metadata").and_then(|metadata| metadata.get(key)).and_then(Value::as_str);
            text.filter(|text| !text.is_empty()).map(str::to_owned)
        };
        found.push(Workload {
            kind: (*kind).to_owned(),
            name: metadata("name").unwrap_or_default(),
            namespace: metadata("namespace"),
            pod: format!("{at}{template}"),
            object: at,
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_kind_that_holds_a_pod_is_known_and_others_of_that_name_are_not() {
        for (version, kind, pod) in [
            ("v1", "Pod", Some("")),
            ("v1", "ReplicationController", Some("/spec/template")),
            ("apps/v1", "Deployment", Some("/spec/template")),
            ("apps/v1", "StatefulSet", Some("/spec/template")),
            ("apps/v1", "DaemonSet", Some("/spec/template")),
            ("apps/v1", "ReplicaSet", Some("/spec/template")),
            ("batch/v1", "Job", Some("/spec/template")),
            ("batch/v1", "CronJob", Some("/spec/jobTemplate/spec/template")),
            ("v1", "Service", None),
            ("batch.volcano.sh/v1alpha1", "Job", None),
            ("v1", "Deployment", None),
        ] {
            let found = workloads(&json!({"apiVersion": version, "kind": kind, "metadata": {"name": "x"}}));
            let found: Vec<_> = found.iter().map(|workload| workload.pod.as_str()).collect();
            assert_eq!(found, pod.into_iter().collect::<Vec<_>>(), "{version} {kind}");
        }
    }

    #[test]
    fn lists_are_opened_typed_ones_and_lists_of_lists_too() {
        let pod = |name: &str| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}});
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Service"},
            {"apiVersion": "v1", "kind": "List", "items": [pod("a")]},
            {"apiVersion": "apps/v1", "kind": "DeploymentList", "items": [
                {"metadata": {"name": "b", "namespace": "shop"}}
            ]},
            {"apiVersion": "v1", "kind": "List", "items": null},
        ]});
        let found: Vec<_> = workloads(&list).into_iter().map(|found| (found.title(), found.pod)).collect();
        assert_eq!(
            found,
            [
                ("Pod a".to_owned(), "/items/1/items/0".to_owned()),
                ("Deployment shop/b".to_owned(), "/items/2/items/0/spec/template".to_owned())
            ]
        );
    }
}
