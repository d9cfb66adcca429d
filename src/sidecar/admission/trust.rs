//! The policy that makes OpenIM trust the guard's certificates: pods with the label `callback-guard.io/trust: enabled`, or
//! in a namespace with it, get the authority's certificate, and a variable that makes Go programs read it.

use serde_json::Value;

use super::super::CONTAINER;
use super::super::container::READABLE;
use super::super::template::{Node, quoted, text};
use super::mutation::add;
use super::variables::is_windows;
use super::{NAME, TRUST, Variables};

/// The ConfigMap with the certificate of the guard's authority, in the namespace of the pods.
pub const AUTHORITY: &str = "callback-guard-ca";
/// Its key.
pub const AUTHORITY_KEY: &str = "ca.crt";

/// A folder at the root: a pod that mounts a volume at its parent, or a file into it, could not start.
const FOLDER: &str = "/callback-guard-ca";

/// The variable that Go's crypto/x509 reads, as OpenSSL does: folders with certificates, in place of the system's folders. The
/// system's own come first here. The system's bundle, a file, is read in any case.
const VARIABLE: &str = "SSL_CERT_DIR";
const SYSTEM_FOLDERS: &str = "/etc/ssl/certs:/etc/pki/tls/certs";

/// Whether a container of a pod has the authority's certificate.
pub(super) fn is_there() -> String {
    format!(
        "object.spec.containers.exists(c, has(c.volumeMounts) && c.volumeMounts.exists(m, m.name == '{AUTHORITY}' && \
         m.mountPath == '{FOLDER}'))"
    )
}

/// The policy and its two bindings.
pub(super) fn objects() -> [Value; 3] {
    let mut variables = Variables::default();
    variables.add("apps", "has(object.spec.containers) ? object.spec.containers : []");
    variables.add("inits", "has(object.spec.initContainers) ? object.spec.initContainers : []");
    let ours = format!("has(v.configMap) && has(v.configMap.name) && v.configMap.name == '{AUTHORITY}'");
    let volume = |which: &str| {
        format!(
            "has(object.spec.volumes) && object.spec.volumes.exists(v, v.name == '{AUTHORITY}' && {which})"
        )
    };
    // Ours if the policy is called once more, for a container that came later.
    variables.add("has-volume", volume(&format!("({ours})")));
    variables.add("has-other-volume", volume(&format!("!({ours})")));
    variables.add("is-windows", is_windows("object"));
    super::mutating(&format!("{NAME}-{TRUST}"), TRUST, &variables, &patch())
}

fn patch() -> String {
    let optional = Node::Object(vec![
        ("name", text(AUTHORITY)),
        (
            "items",
            Node::List(vec![Node::Object(vec![("key", text(AUTHORITY_KEY)), ("path", text(AUTHORITY_KEY))])]),
        ),
        ("defaultMode", Node::Int(READABLE)),
        ("optional", Node::Bool(true)),
    ]);
    let volume = Node::Object(vec![("name", text(AUTHORITY)), ("configMap", optional)]);
    format!(
        "variables.hasOtherVolume || variables.isWindows ? [] : (\n(has(object.spec.volumes) ? [] : [{}])\n+ \
         (variables.hasVolume ? [] : [{}])\n+ {}\n+ {}\n)",
        add("'/spec/volumes'", "[]"),
        add("'/spec/volumes/-'", &volume.cel("Object.spec.volumes")),
        containers("apps", "containers"),
        containers("inits", "initContainers"),
    )
}

/// The steps for the containers of a list that do not have the variable, nor anything at the same place.
fn containers(variable: &str, list: &str) -> String {
    let kind = format!("Object.spec.{list}");
    let path = |field: &str| format!("'/spec/{list}/' + string(i) + '/{field}'");
    let ensured = |field: &str| format!("(has(c.{field}) ? [] : [{}])", add(&path(field), "[]"));
    let setting =
        Node::Object(vec![("name", text(VARIABLE)), ("value", text(format!("{SYSTEM_FOLDERS}:{FOLDER}")))]);
    let mount = Node::Object(vec![
        ("name", text(AUTHORITY)),
        ("mountPath", text(FOLDER)),
        ("readOnly", Node::Bool(true)),
    ]);
    let there = |path: &str| {
        format!("({path} == {} || {path}.startsWith({}))", quoted(FOLDER), quoted(&format!("{FOLDER}/")))
    };
    let wanted = format!(
        "c.name != '{CONTAINER}' && !(has(c.env) && c.env.exists(e, e.name == '{VARIABLE}')) && !(has(c.volumeMounts) && \
         c.volumeMounts.exists(m, {})) && !(has(c.volumeDevices) && c.volumeDevices.exists(d, {}))",
        there("m.mountPath"),
        there("d.devicePath")
    );
    format!(
        "variables.{variable}.transformList(i, c, {wanted}, {} + [{}] + {} + [{}]).flatten()",
        ensured("env"),
        add(&path("env/-"), &setting.cel(&format!("{kind}.env"))),
        ensured("volumeMounts"),
        add(&path("volumeMounts/-"), &mount.cel(&format!("{kind}.volumeMounts"))),
    )
}
