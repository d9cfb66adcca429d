//! Why a pod has no sidecar, and what is worth a look at one that has: one table for `inject -f`, for the warnings of the
//! admission policy and for the documentation.

use std::fmt;

/// Why a pod gets no sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// No label asks for it.
    NotAsked,
    /// Its label, or that of its namespace, says so.
    Disabled,
    /// A namespace of Kubernetes itself.
    SystemNamespace,
    /// The namespace of this installation.
    OwnNamespace,
    /// A namespace that this installation does not serve.
    NamespaceNotListed,
    /// The image of a static pod in the API.
    MirrorPod,
    /// It has one.
    AlreadyInjected,
    /// It uses the node's network.
    HostNetwork,
    /// It runs on Windows.
    Windows,
    /// The app declares a port of the sidecar.
    PortInUse,
    /// The pod has a volume with a name of the sidecar's.
    VolumeInUse,
    /// The pod has no containers.
    NoContainers,
    /// A part of the pod is not what Kubernetes requires, a text in place of a list say.
    Malformed,
    /// The pod's annotations leave no room for ours.
    AnnotationsTooLong,
    /// The label has a value that it cannot have.
    InvalidLabel,
    /// An annotation has a value that it cannot have.
    InvalidAnnotation,
    /// There is no such annotation.
    UnknownAnnotation,
    /// Annotations contradict each other, or the pod.
    Conflict,
}

/// What is worth a look at a pod, a workload or a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Notice {
    /// The policy that adds the sidecar was not applied, and nothing in the pod is the reason.
    NotApplied,
    /// No container of a pod that asked for it has the authority.
    NotTrusting,
    /// Another init container starts before the sidecar.
    NotFirst,
    /// Nothing says where the app listens.
    UpstreamGuessed,
    /// The label is on the workload, where it has no effect.
    LabelOnWorkload,
    /// A setting is on the workload, where it has no effect.
    AnnotationOnWorkload,
    /// The label is an annotation, where it has no effect.
    LabelAsAnnotation,
}

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Words {
    /// Its name, for people, events and metrics.
    pub name: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

const fn words(name: &'static str, meaning: &'static str, remedy: &'static str) -> Words {
    Words { name, meaning, remedy }
}

const IN_FRONT: &str =
    "run callback-guard proxy as a Deployment in front of the app (--allow-remote-upstream)";

impl Reason {
    /// Every reason, in the order in which they are looked for.
    pub const ALL: [Reason; 18] = [
        Reason::NotAsked,
        Reason::Disabled,
        Reason::SystemNamespace,
        Reason::OwnNamespace,
        Reason::NamespaceNotListed,
        Reason::MirrorPod,
        Reason::AlreadyInjected,
        Reason::HostNetwork,
        Reason::Windows,
        Reason::PortInUse,
        Reason::VolumeInUse,
        Reason::NoContainers,
        Reason::Malformed,
        Reason::AnnotationsTooLong,
        Reason::InvalidLabel,
        Reason::InvalidAnnotation,
        Reason::UnknownAnnotation,
        Reason::Conflict,
    ];

    /// Whether `inject -f` skips the pod; otherwise it reports a problem and writes nothing.
    pub fn is_skipped(self) -> bool {
        match self {
            Reason::NotAsked
            | Reason::Disabled
            | Reason::SystemNamespace
            | Reason::OwnNamespace
            | Reason::NamespaceNotListed
            | Reason::MirrorPod
            | Reason::AlreadyInjected
            | Reason::HostNetwork
            | Reason::Windows
            | Reason::PortInUse => true,
            Reason::VolumeInUse
            | Reason::NoContainers
            | Reason::Malformed
            | Reason::AnnotationsTooLong
            | Reason::InvalidLabel
            | Reason::InvalidAnnotation
            | Reason::UnknownAnnotation
            | Reason::Conflict => false,
        }
    }

    /// Its name, what it means and what to do.
    #[allow(clippy::too_many_lines, reason = "a table: one arm for each reason, and no other code")]
    pub const fn words(self) -> Words {
        match self {
            Reason::NotAsked => words(
                "not-asked",
                "neither the pod nor its namespace has the label callback-guard.io/inject: enabled",
                "set the label on one of them",
            ),
            Reason::Disabled => words(
                "disabled",
                "the label callback-guard.io/inject is disabled",
                "set the label to enabled, or remove it",
            ),
            Reason::SystemNamespace => words(
                "system-namespace",
                "pods in kube-system and kube-node-lease never get a sidecar",
                "run the app in a namespace of its own",
            ),
            Reason::OwnNamespace => words(
                "own-namespace",
                "pods in the namespace of callback-guard itself never get a sidecar",
                "run the app in a namespace of its own",
            ),
            Reason::NamespaceNotListed => words(
                "namespace-not-listed",
                "this installation does not serve the namespace",
                "add it to --namespaces of callback-guard admission-policy, and apply the output",
            ),
            Reason::MirrorPod => words(
                "mirror-pod",
                "it is a static pod, whose manifest is a file on its node",
                "run the app as a Deployment",
            ),
            Reason::AlreadyInjected => words(
                "already-injected",
                "the pod has a container named callback-guard",
                "to renew the sidecar of a manifest, run callback-guard uninject first; rename a container of your own",
            ),
            Reason::HostNetwork => words(
                "host-network",
                "the pod uses hostNetwork, so the sidecar's ports would be the node's",
                IN_FRONT,
            ),
            Reason::Windows => {
                words("windows", "the pod is for Windows nodes, and the sidecar runs on Linux", IN_FRONT)
            }
            Reason::PortInUse => words(
                "port-in-use",
                "the app declares a TCP port of the sidecar, or a port named callback-guard or guard-admin",
                "set the annotations callback-guard.io/listen-port and callback-guard.io/admin-port to free ports; rename \
                 the port",
            ),
            Reason::VolumeInUse => words(
                "volume-in-use",
                "the pod has a volume with a name that the sidecar uses",
                "rename the volume",
            ),
            Reason::NoContainers => {
                words("no-containers", "the pod has no containers", "add the app's container")
            }
            Reason::Malformed => words(
                "malformed",
                "a part of the pod is not what Kubernetes requires, a text in place of a list for example",
                "correct what the message names",
            ),
            Reason::AnnotationsTooLong => words(
                "annotations-too-long",
                "the pod has more than 255 KiB of annotations, and Kubernetes allows 256",
                "remove some",
            ),
            Reason::InvalidLabel => words(
                "invalid-label",
                "the label callback-guard.io/inject has another value than enabled or disabled",
                "set the label to enabled or disabled",
            ),
            Reason::InvalidAnnotation => words(
                "invalid-annotation",
                "an annotation has a value that is not allowed",
                "set a value that the message or the table above allows",
            ),
            Reason::UnknownAnnotation => words(
                "unknown-annotation",
                "no annotation of that name can be set",
                "correct the name, or remove the annotation",
            ),
            Reason::Conflict => words(
                "conflict",
                "annotations contradict each other, or the pod",
                "change one of the values that the message names",
            ),
        }
    }
}

impl Notice {
    /// Every notice.
    pub const ALL: [Notice; 7] = [
        Notice::NotApplied,
        Notice::NotTrusting,
        Notice::NotFirst,
        Notice::UpstreamGuessed,
        Notice::LabelOnWorkload,
        Notice::AnnotationOnWorkload,
        Notice::LabelAsAnnotation,
    ];

    /// Its name, what it means and what to do.
    pub const fn words(self) -> Words {
        match self {
            Notice::NotApplied => words(
                "not-applied",
                "nothing in the pod is in the way, but the MutatingAdmissionPolicy callback-guard was missing or failed, or \
                 something else set the label after it",
                "apply the output of callback-guard admission-policy again, set the label in the pod template or on the \
                 namespace, and restart the app",
            ),
            Notice::NotTrusting => words(
                "not-trusting",
                "no container has the guard's CA: each sets SSL_CERT_DIR itself or mounts something at /callback-guard-ca, \
                 the pod has a volume named callback-guard-ca, is for Windows nodes, or is in kube-system, kube-node-lease \
                 or the namespace of callback-guard",
                "remove what is in the way, or remove the label callback-guard.io/trust",
            ),
            Notice::NotFirst => words(
                "not-first",
                "another injector put its init container before the sidecar, which does not serve until that has finished",
                "change the order of the injectors, or let that one append its container",
            ),
            Notice::UpstreamGuessed => words(
                "upstream-guessed",
                "the pod names no single port of the app, so callbacks go to port 8080",
                "set the annotation callback-guard.io/upstream-port",
            ),
            Notice::LabelOnWorkload => words(
                "label-on-workload",
                "the labels callback-guard.io/inject and callback-guard.io/trust have no effect on a workload",
                "move the label to the pod template, spec.template.metadata.labels (in a CronJob \
                 spec.jobTemplate.spec.template.metadata.labels)",
            ),
            Notice::AnnotationOnWorkload => words(
                "annotation-on-workload",
                "annotations of callback-guard.io have no effect on a workload",
                "move them to the pod template, spec.template.metadata.annotations (in a CronJob \
                 spec.jobTemplate.spec.template.metadata.annotations)",
            ),
            Notice::LabelAsAnnotation => words(
                "label-as-annotation",
                "callback-guard.io/inject is an annotation here, and has no effect",
                "set it as a label, to enabled or disabled",
            ),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words().name)
    }
}

impl fmt::Display for Words {
    /// `NAME: MEANING: REMEDY`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.name, self.meaning, self.remedy)
    }
}
