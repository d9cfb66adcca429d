//! The variables of the policies: everything that [`super::super::inject`] finds out about a pod, in CEL.
//!
//! They are evaluated when they are used, each at most once. Those that convert a text are only used if every setting is
//! valid, or check that first.

use serde_json::{Value, json};

use super::super::annotations::{Effect, INJECT, NOT_SET, PREFIX, TABLE, settings};
use super::super::container::{GRACE_RANGE, GUARANTEED_CPU, VOLUMES, condition_that_set};
use super::super::kind::NONE;
use super::super::reason::{Notice, Reason};
use super::super::template::{identifier, quoted, variable};
use super::super::{
    ANNOTATION_BYTES, CONTAINER, OWN_PORT, PORT_NAMES, SYSTEM_NAMESPACES, UPSTREAM_PORT, pod,
};
use super::markers;

/// What a policy looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// A pod that is created.
    Pod,
    /// A workload, whose pod template is looked at.
    Workload,
    /// A namespace, whose annotations are settings of its pods.
    Namespace,
}

/// Longest value that is shown in a message, in characters.
const SHOWN: usize = 60;

/// Variables in their order, each with its expression.
#[derive(Clone, Debug, Default)]
pub(super) struct Variables(Vec<(String, String)>);

impl Variables {
    /// Those of a policy about this subject; the last one is `reasons`.
    pub(super) fn of(subject: Subject) -> Variables {
        let mut variables = Variables::default();
        variables.layers(subject);
        variables.settings(subject);
        match subject {
            Subject::Pod => variables.facts("object"),
            Subject::Workload => variables.facts("variables.template"),
            Subject::Namespace => {
                variables.ports();
                let found = variables.contradictions();
                variables.add("conflicts", format!("variables.invalid.size() > 0 ? [] : {found}"));
                variables.add("reasons", "variables.invalid + variables.unknown + variables.conflicts");
            }
        }
        variables
    }

    pub(super) fn add(&mut self, name: &str, expression: impl Into<String>) {
        self.0.push((identifier(name), expression.into()));
    }

    /// Only those that these expressions use, directly or through others.
    pub(super) fn used_by(mut self, expressions: &[&str]) -> Variables {
        let mut kept = Vec::new();
        // A variable uses only those before it.
        for (name, expression) in self.0.drain(..).rev() {
            let reference = variable(&name);
            let uses = |text: &str| {
                text.match_indices(&reference).any(|(at, _)| {
                    let next = text[at + reference.len()..].chars().next();
                    !next.is_some_and(|next| next.is_ascii_alphanumeric())
                })
            };
            let used = expressions.iter().any(|text| uses(text))
                || kept.iter().any(|(_, expression): &(String, String)| uses(expression));
            if used {
                kept.push((name, expression));
            }
        }
        kept.reverse();
        Variables(kept)
    }

    pub(super) fn json(&self) -> Value {
        self.0.iter().map(|(name, expression)| json!({"name": name, "expression": expression})).collect()
    }

    /// All of them as one text, for a hash.
    pub(super) fn text(&self) -> String {
        self.0.iter().map(|(name, expression)| format!("{name} = {expression}\n")).collect()
    }

    /// Where settings come from.
    fn layers(&mut self, subject: Subject) {
        let annotations =
            |of: &str| format!("has({of}.metadata.annotations) ? {of}.metadata.annotations : {{}}");
        if subject == Subject::Workload {
            let template =
                "object.kind == 'CronJob' ? object.spec.jobTemplate.spec.template : object.spec.template";
            self.add("template", template);
        }
        match subject {
            Subject::Pod => self.add("pod-annotations", annotations("object")),
            Subject::Workload => self.add(
                "pod-annotations",
                format!("has(variables.template.metadata) && {}", annotations("variables.template")),
            ),
            Subject::Namespace => self.add("pod-annotations", "{}"),
        }
        let namespace = if subject == Subject::Namespace { "object" } else { "namespaceObject" };
        self.add("namespace-annotations", annotations(namespace));
        self.add("settings", if subject == Subject::Namespace { "{}" } else { markers::SETTINGS });
        self.add("namespaces", markers::NAMESPACES);
    }

    /// The settings in force, and what is wrong with them.
    fn settings(&mut self, subject: Subject) {
        for row in settings() {
            let key = key(row.name);
            let default = quoted(row.default_value());
            self.add(
                row.name,
                format!(
                    "{key} in variables.podAnnotations ? string(variables.podAnnotations[{key}]) : {key} in \
                     variables.namespaceAnnotations ? string(variables.namespaceAnnotations[{key}]) : {name} in \
                     variables.settings ? string(variables.settings[{name}]) : {default}",
                    name = quoted(row.name),
                ),
            );
        }
        let invalid = settings().map(|row| {
            let value = variable(row.name);
            let layer = layer(row.name);
            let message = format!(
                "{} + {layer} + ': Invalid value: ' + {} + {}",
                quoted(&format!("{}: {PREFIX}{}", Reason::InvalidAnnotation, row.name)),
                shown(&value),
                quoted(&format!(": {}", row.kind.wanted())),
            );
            format!("({} && !({}) ? [{message}] : [])", is_set(row.name), row.kind.allows_in_cel(&value))
        });
        let records = TABLE.iter().filter(|row| !row.is_setting()).map(|row| {
            let why = if row.name == INJECT { "" } else { "; only the injection writes it: remove it" };
            let message = format!(
                "{}: {PREFIX}{}: Not allowed: {}{why}",
                Reason::InvalidAnnotation,
                row.name,
                row.meaning
            );
            let key = key(row.name);
            format!(
                "({key} in variables.podAnnotations || {key} in variables.namespaceAnnotations ? [{}] : [])",
                quoted(&message)
            )
        });
        self.add("invalid", invalid.chain(records).collect::<Vec<_>>().join("\n+ "));
        let known = json!(TABLE.iter().map(|row| format!("{PREFIX}{}", row.name)).collect::<Vec<_>>());
        let unknown = |layer: &str| {
            format!("variables.{layer}.filter(k, k.startsWith({}) && !(k in {known}))", quoted(PREFIX))
        };
        let layers = match subject {
            Subject::Namespace => unknown("namespaceAnnotations"),
            Subject::Pod | Subject::Workload => {
                format!("{} + {}", unknown("podAnnotations"), unknown("namespaceAnnotations"))
            }
        };
        self.add("unknown-names", layers);
        let names: Vec<_> = settings().map(|row| row.name).collect();
        self.add(
            "unknown",
            format!(
                "variables.unknownNames.size() == 0 ? [] : [{} + variables.unknownNames.map(k, \
                 strings.quote(k)).join(', ') + {}]",
                quoted(&format!("{}: ", Reason::UnknownAnnotation)),
                quoted(&format!(": known under {PREFIX} are {}", names.join(", "))),
            ),
        );
    }

    /// The ports of the sidecar.
    fn ports(&mut self) {
        self.add("listen", "variables.invalid.size() > 0 ? 0 : int(variables.listenPort)");
        self.add("admin", "variables.invalid.size() > 0 ? 0 : int(variables.adminPort)");
    }

    /// What the expression `of` says about itself as a pod, and whether it gets a sidecar.
    fn facts(&mut self, of: &str) {
        self.add("apps", format!("has({of}.spec.containers) ? {of}.spec.containers : []"));
        self.add("inits", format!("has({of}.spec.initContainers) ? {of}.spec.initContainers : []"));
        self.ports();
        let seconds = format!("{of}.spec.terminationGracePeriodSeconds");
        self.add("grace-period", format!("has({seconds}) ? int({seconds}) : {}", pod::GRACE_SECONDS));
        let [least, most] = GRACE_RANGE;
        self.add(
            "grace",
            format!(
                "variables.gracePeriod < {least} ? {least} : variables.gracePeriod > {most} ? {most} : \
                 variables.gracePeriod"
            ),
        );
        self.upstream();
        self.resources(of);
        for row in settings().filter(|row| row.effect == Effect::Flag || row.default_value() == NOT_SET) {
            self.add(&condition_that_set(row.name), is_set(row.name));
        }
        self.add("watch", "variables.policySource == 'watch'");
        self.add("fixed-user", format!("variables.runAsUser != '{NONE}'"));
        self.add("user", "variables.fixedUser ? int(variables.runAsUser) : 0");
        self.add(
            "sleep-seconds",
            format!(
                "variables.invalid.size() > 0 || variables.appPreStopSleep == '{NONE}' ? 0 : \
                 duration(variables.appPreStopSleep).getSeconds()"
            ),
        );
        self.skips(of);
        self.conflicts();
        self.add("reasons", "variables.skips + variables.invalid + variables.unknown + variables.conflicts");
    }

    /// Where the app is called.
    fn upstream(&mut self) {
        self.add(
            "tcp-ports",
            format!(
                "variables.apps.map(c, has(c.ports) ? c.ports.filter(p, {IS_TCP}).map(p, p.containerPort) : \
                 []).flatten()"
            ),
        );
        let probes = ["readinessProbe", "livenessProbe", "startupProbe"].map(|probe| {
            // A probe of another host says nothing about the app.
            let handlers = ["httpGet", "tcpSocket", "grpc"]
                .map(|kind| {
                    let here = if kind == "grpc" {
                        String::new()
                    } else {
                        format!(" && !has(c.{probe}.{kind}.host)")
                    };
                    format!("has(c.{probe}.{kind}){here} ? [c.{probe}.{kind}.port]")
                })
                .join(" : ");
            format!("(has(c.{probe}) ? ({handlers} : []) : [])")
        });
        let by_name = "has(c.ports) ? c.ports.filter(p, has(p.name) && p.name == string(q) && (PROTOCOL)).map(p, p.containerPort) : []";
        let by_name = by_name.replace("PROTOCOL", IS_TCP);
        self.add(
            "probe-ports",
            format!(
                "variables.apps.map(c, ({}).map(q, type(q) == int ? [int(q)] : ({by_name})).flatten()).flatten()",
                probes.join(" + ")
            ),
        );
        let one = |list: &str| {
            format!("variables.{list}.size() > 0 && variables.{list}.all(p, p == variables.{list}[0])")
        };
        self.add(
            "upstream-is-guess",
            format!("!{} && !({}) && !({})", is_set("upstream-port"), one("tcpPorts"), one("probePorts")),
        );
        self.add(
            "upstream",
            format!(
                "variables.invalid.size() > 0 ? 0 : {} ? int(variables.upstreamPort) : {} ? int(variables.tcpPorts[0]) : \
                 {} ? int(variables.probePorts[0]) : {UPSTREAM_PORT}",
                is_set("upstream-port"),
                one("tcpPorts"),
                one("probePorts"),
            ),
        );
    }

    fn resources(&mut self, of: &str) {
        let some =
            |part: &str| format!("has({of}.spec.resources.{part}) && {of}.spec.resources.{part}.size() > 0");
        self.add(
            "pod-resources",
            format!("has({of}.spec.resources) && ({} || {})", some("requests"), some("limits")),
        );
        self.add("own-resources", "!variables.podResources");
        let limit = "quantity(string(c.resources.limits[r]))";
        let request = "quantity(string(c.resources.requests[r]))";
        self.add(
            "guaranteed",
            format!(
                "(variables.apps + variables.inits).all(c, has(c.resources) && has(c.resources.limits) && ['cpu', \
                 'memory'].all(r, r in c.resources.limits && {limit}.isGreaterThan(quantity('0')) && (!has(c.resources.requests) || !(r in \
                 c.resources.requests) || {request}.compareTo({limit}) == 0)))"
            ),
        );
        self.add(
            "cpu-limit-in-force",
            format!(
                "variables.guaranteed && variables.cpuLimit == '{NONE}' ? '{GUARANTEED_CPU}' : variables.cpuLimit"
            ),
        );
        self.add("cpu-limited", format!("variables.cpuLimitInForce != '{NONE}'"));
        self.add(
            "cpu-request-in-force",
            format!(
                "variables.guaranteed ? variables.cpuLimitInForce : {} ? variables.cpuLimit : variables.cpuRequest",
                above("cpu")
            ),
        );
        self.add(
            "memory-request-in-force",
            format!(
                "variables.guaranteed ? variables.memoryLimit : {} ? variables.memoryLimit : variables.memoryRequest",
                above("memory")
            ),
        );
    }

    /// The reasons for which `inject -f` skips a pod, and those that are about its shape.
    fn skips(&mut self, of: &str) {
        let in_use = format!(
            "(variables.apps + variables.inits).exists(c, has(c.ports) && c.ports.exists(p, (has(p.name) && p.name in {}) \
             || (({IS_TCP}) && (p.containerPort == variables.listen || p.containerPort == variables.admin))))",
            json!(PORT_NAMES)
        );
        self.add("port-in-use", in_use);
        let volumes =
            format!("has({of}.spec.volumes) && {of}.spec.volumes.exists(v, v.name in {})", json!(VOLUMES));
        let reasons = [
            (Reason::MirrorPod, "'kubernetes.io/config.mirror' in variables.podAnnotations".to_owned()),
            (
                Reason::AlreadyInjected,
                format!("(variables.apps + variables.inits).exists(c, c.name == '{CONTAINER}')"),
            ),
            (Reason::HostNetwork, format!("has({of}.spec.hostNetwork) && {of}.spec.hostNetwork")),
            (Reason::Windows, is_windows(of)),
            (Reason::PortInUse, "variables.portInUse".to_owned()),
            (Reason::VolumeInUse, volumes),
            (Reason::NoContainers, "variables.apps.size() == 0".to_owned()),
            (
                Reason::AnnotationsTooLong,
                format!(
                    "variables.podAnnotations.map(k, bytes(k).size() + \
                     bytes(string(variables.podAnnotations[k])).size()).sum() > {ANNOTATION_BYTES}"
                ),
            ),
        ];
        let reasons = reasons
            .map(|(reason, holds)| format!("({holds} ? [{}] : [])", quoted(&reason.words().to_string())));
        self.add(
            "skips",
            format!(
                "({})\n+ {}\n+ {}",
                not_served("request.namespace"),
                reasons.join("\n+ "),
                invalid_label(of, INJECT)
            ),
        );
    }

    /// Settings that contradict each other.
    fn contradictions(&self) -> String {
        let above = |resource: &str| {
            let (request, limit) = (format!("{resource}-request"), format!("{resource}-limit"));
            let message =
                conflict(&request, &variable(&request), &format!("is more than {PREFIX}{limit}, which is "));
            format!(
                "({} && {} ? [{message} + {}] : [])",
                is_set(&request),
                self::above(resource),
                variable(&limit)
            )
        };
        let same =
            |row: &str, other: &str| conflict(row, &variable(row), &format!("{PREFIX}{other} is the same"));
        let same_port = format!(
            "(variables.listen == variables.admin ? [{} ? {} : {}] : [])",
            is_set("admin-port"),
            same("admin-port", "listen-port"),
            same("listen-port", "admin-port")
        );
        let own_port = format!(
            "({} && int(variables.upstreamPort) in [variables.listen, variables.admin] ? [{}] : [])",
            is_set("upstream-port"),
            conflict("upstream-port", "variables.upstreamPort", OWN_PORT)
        );
        format!("{}\n+ {}\n+ {same_port}\n+ {own_port}", above("cpu"), above("memory"))
    }

    fn conflicts(&mut self) {
        let sleep = format!(
            "(variables.sleepSeconds > 0 && variables.sleepSeconds >= variables.gracePeriod ? [{} + \
             string(variables.gracePeriod)] : [])",
            conflict(
                "app-pre-stop-sleep",
                "variables.appPreStopSleep",
                "must be shorter than the pod's terminationGracePeriodSeconds, "
            )
        );
        let own_port = format!(
            "(variables.upstream in [variables.listen, variables.admin] && !{} && !variables.portInUse ? [{}] : [])",
            is_set("upstream-port"),
            conflict("upstream-port", "string(variables.upstream)", OWN_PORT)
        );
        let found = self.contradictions();
        self.add(
            "conflicts",
            format!("variables.invalid.size() > 0 ? [] : {found}\n+ {sleep}\n+ {own_port}"),
        );
    }
}

/// The words for a setting that is valid in itself. `value` is an expression.
fn conflict(name: &str, value: &str, why: &str) -> String {
    format!(
        "{} + {} + ': Invalid value: ' + strings.quote({value}) + {}",
        quoted(&format!("{}: {PREFIX}{name}", Reason::Conflict)),
        layer(name),
        quoted(&format!(": {why}"))
    )
}

/// Why a namespace, whose name is an expression, is not served; an empty list if it is. One reason says enough.
pub(super) fn not_served(name: &str) -> String {
    let reasons = [
        (Reason::SystemNamespace, format!("{name} in {}", json!(SYSTEM_NAMESPACES))),
        (Reason::OwnNamespace, format!("{name} == '{}'", markers::OWN_NAMESPACE)),
        (Reason::NamespaceNotListed, format!("!({name} in variables.namespaces)")),
    ];
    reasons.iter().rev().fold("[]".to_owned(), |rest, (reason, holds)| {
        format!("{holds} ? [{}] : {rest}", quoted(&reason.words().to_string()))
    })
}

/// Whether the port `p` is TCP.
const IS_TCP: &str = "!has(p.protocol) || p.protocol == 'TCP'";

fn key(name: &str) -> String {
    quoted(&format!("{PREFIX}{name}"))
}

/// Whether the pod `of` is for Windows nodes.
pub(super) fn is_windows(of: &str) -> String {
    let node = format!("{of}.spec.nodeSelector");
    let selects = ["kubernetes.io/os", "beta.kubernetes.io/os"].map(|key| {
        let key = quoted(key);
        format!("({key} in {node} && {node}[{key}] == 'windows')")
    });
    format!(
        "(has({of}.spec.os) && {of}.spec.os.name == 'windows') || (has({node}) && ({}))",
        selects.join(" || ")
    )
}

/// Where a row is set, for a message.
fn layer(name: &str) -> String {
    let key = key(name);
    format!(
        "({key} in variables.podAnnotations ? '' : {key} in variables.namespaceAnnotations ? ' of the namespace' : {} in \
         variables.settings ? ' of the installation' : '')",
        quoted(name)
    )
}

/// Whether a layer sets a row.
fn is_set(name: &str) -> String {
    let key = key(name);
    format!(
        "({key} in variables.podAnnotations || {key} in variables.namespaceAnnotations || {} in variables.settings)",
        quoted(name)
    )
}

/// Whether a request is above its limit; both have to be valid.
fn above(resource: &str) -> String {
    let [request, limit] = ["request", "limit"].map(|part| variable(&format!("{resource}-{part}")));
    format!("({limit} != '{NONE}' && quantity({request}).isGreaterThan(quantity({limit})))")
}

/// A value as a message shows it: in quotes, and not longer than is read. The API server drops a warning with a control
/// character.
pub(super) fn shown(value: &str) -> String {
    format!(
        "({value}.matches({}) ? 'a text with control characters' : strings.quote({value}.size() > {SHOWN} ? \
         {value}.substring(0, {SHOWN}) + '...' : {value}))",
        quoted(r"[\x00-\x1f\x7f-\x{9f}]")
    )
}

/// The reason if the object `of` has a label of ours with a value that it cannot have, as a list.
pub(super) fn invalid_label(of: &str, label: &str) -> String {
    let key = key(label);
    let labels = format!("{of}.metadata.labels");
    let value = format!("string({labels}[{key}])");
    let words = Reason::InvalidLabel.words();
    format!(
        "(has({of}.metadata) && has({labels}) && {key} in {labels} && !({value} in ['enabled', 'disabled']) ? [{} + {} + \
         {}] : [])",
        quoted(&format!("{}: {PREFIX}{label}: Unsupported value: ", words.name)),
        shown(&value),
        quoted(": supported values: \"enabled\", \"disabled\""),
    )
}

/// The words of a notice, as a list if the condition holds.
pub(super) fn notice(holds: &str, notice: Notice) -> String {
    format!("({holds} ? [{}] : [])", quoted(&notice.words().to_string()))
}
