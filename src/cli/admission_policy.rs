//! `admission-policy`: prints the objects that make the API server itself inject the sidecar.

use std::io::Write;

use serde_json::{Value, json};

use super::inject::yaml;
use crate::sidecar::admission::{self, markers};
use crate::sidecar::annotations::{Kind, NAME_PATTERN, settings};
use crate::sidecar::{Installation, POLICY_CONFIGMAP, SYSTEM_NAMESPACES, TLS_SECRET};

/// What `admission-policy` prints.
#[derive(Clone, Debug)]
pub struct AdmissionPolicy {
    /// Where the namespaces and settings come from.
    pub values: Values,
}

/// Where the namespaces and settings come from.
#[derive(Clone, Debug)]
pub enum Values {
    /// From the flags.
    Are(Box<Installation>),
    /// From a chart's values.
    OfChart,
}

/// Prints the objects, and returns the exit code: 1 if they could not be written.
pub fn run(config: &AdmissionPolicy, out: &mut dyn Write) -> u8 {
    let text = match &config.values {
        Values::Are(installation) => documents(&admission::objects(installation)),
        Values::OfChart => chart(),
    };
    u8::from(out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err()) * super::PROBLEM
}

/// Objects as a stream of YAML.
fn documents(objects: &[Value]) -> String {
    objects.iter().map(|object| format!("---\n{}", yaml(object))).collect()
}

/// The part of a template before the objects: the values as texts that CEL reads. Every name, text and number that an
/// object gets is checked or quoted here, because a template puts it into YAML as it is.
///
/// A setting that is empty or null is not set. The image is `sidecar.image`: a text, or an object with registry, repository,
/// tag and digest. A value that `--set` would refuse by its name, or that YAML does not read as written, fails; what
/// a setting may be is left to the schema of the chart and to the policies, which report it.
const CHART_HEAD: &str = r#"{{- define "callback-guard.text" -}}
{{- /* Helm reads every number of YAML as a float64, and prints a large one as 1e+09. */ -}}
{{- if kindIs "invalid" .value -}}
{{- else if or (kindIs "string" .value) (kindIs "int64" .value) -}}
{{ .value }}
{{- else if and (kindIs "float64" .value) (eq (float64 (int64 .value)) .value) -}}
{{ int64 .value }}
{{- else -}}
{{- fail (printf "%s: Invalid value: %s: must be a string: put it in quotes" .name (toRawJson .value)) -}}
{{- end -}}
{{- end -}}
{{- define "callback-guard.name" -}}
{{- $name := include "callback-guard.text" . -}}
{{- if not (regexMatch "@name-pattern@" $name) -}}
{{- fail (printf "%s: Invalid value: %q: @name-wanted@" .name $name) -}}
{{- end -}}
{{ $name }}
{{- end -}}
{{- $sidecar := default dict .Values.sidecar -}}
{{- if not (kindIs "map" $sidecar) }}{{ fail "sidecar: must be an object with the settings of all sidecars" }}{{ end -}}
{{- $settings := dict "policy-configmap" "@policy-configmap-default@" "tls-secret" "@tls-secret-default@" -}}
{{- $known := list @names@ -}}
{{- range $name, $value := omit $sidecar "image" -}}
{{- if not (has $name $known) }}{{ fail (printf "sidecar.%s: Unknown setting: known are %s" $name (join ", " $known)) }}{{ end -}}
{{- /* In YAML the bare word off is false. */ -}}
{{- if and (eq $name "log-level") (kindIs "bool" $value) (not $value) }}{{ $value = "off" }}{{ end -}}
{{- with include "callback-guard.text" (dict "name" (printf "sidecar.%s" $name) "value" $value) -}}
{{- $_ := set $settings $name . -}}
{{- end -}}
{{- end -}}
{{- $image := $sidecar.image -}}
{{- if kindIs "map" $image -}}
{{- $parts := dict -}}
{{- $known := list "registry" "repository" "tag" "digest" -}}
{{- range $name, $value := $image -}}
{{- if not (has $name $known) }}{{ fail (printf "sidecar.image.%s: Unknown value: known are %s" $name (join ", " $known)) }}{{ end -}}
{{- $_ := set $parts $name (include "callback-guard.text" (dict "name" (printf "sidecar.image.%s" $name) "value" $value)) -}}
{{- end -}}
{{- $image = required "sidecar.image.repository: is missing: set it to the image's name without registry and tag" $parts.repository -}}
{{- with $parts.registry }}{{ $image = printf "%s/%s" . $image }}{{ end -}}
{{- if $parts.digest -}}
{{- $image = printf "%s@%s" $image $parts.digest -}}
{{- else -}}
{{- $tag := default .Chart.AppVersion $parts.tag -}}
{{- $image = printf "%s:%s" $image (required "sidecar.image.tag: is missing, and the chart has no appVersion" $tag) -}}
{{- end -}}
{{- else -}}
{{- $image = include "callback-guard.text" (dict "name" "sidecar.image" "value" $image) -}}
{{- end -}}
{{- $_ := set $settings "image" (required "sidecar.image: is missing: set it to the image, or to its registry, repository, and tag or digest" $image) -}}
{{- $pullSecrets := list -}}
{{- if not (kindIs "slice" (default list .Values.imagePullSecrets)) }}{{ fail "imagePullSecrets: must be a list of names" }}{{ end -}}
{{- range $index, $secret := .Values.imagePullSecrets -}}
{{- $path := printf "imagePullSecrets[%d]" $index -}}
{{- if kindIs "map" $secret }}{{ $path = printf "%s.name" $path }}{{ $secret = $secret.name }}{{ end -}}
{{- $pullSecrets = append $pullSecrets (include "callback-guard.name" (dict "name" $path "value" $secret)) -}}
{{- end -}}
{{- $pullSecrets = uniq $pullSecrets -}}
{{- $namespaces := list -}}
{{- if not (and .Values.namespaces (kindIs "slice" .Values.namespaces)) -}}
{{- fail "namespaces: is missing: set it to a list of the namespaces whose pods may get a sidecar, each with its name" -}}
{{- end -}}
{{- range $index, $namespace := .Values.namespaces -}}
{{- $path := printf "namespaces[%d]" $index -}}
{{- if not (kindIs "map" $namespace) }}{{ fail (printf "%s: Invalid value: %s: must be an object with a name" $path (toRawJson $namespace)) }}{{ end -}}
{{- $path = printf "%s.name" $path -}}
{{- $name := include "callback-guard.name" (dict "name" $path "value" $namespace.name) -}}
{{- if has $name (list @system-namespaces@) }}{{ fail (printf "%s: %q: pods there never get a sidecar" $path $name) }}{{ end -}}
{{- if eq $name $.Release.Namespace }}{{ fail (printf "%s: %q is the namespace of this release, whose pods never get a sidecar" $path $name) }}{{ end -}}
{{- if has $name $namespaces }}{{ fail (printf "%s: %q is listed twice" $path $name) }}{{ end -}}
{{- $namespaces = append $namespaces $name -}}
{{- end -}}
{{- $settingsText := toRawJson $settings -}}
{{- $pullSecretsText := toRawJson $pullSecrets -}}
{{- $hash := printf "%s\n%s\n%s" "@template-hash@" $settingsText $pullSecretsText | sha256sum | trunc 16 -}}
"#;

/// The head with what it shares with the program.
fn head() -> String {
    let list = |texts: &[&str]| texts.iter().map(|text| format!("{text:?}")).collect::<Vec<_>>().join(" ");
    let names: Vec<_> = settings().map(|row| row.name).filter(|name| *name != "image").collect();
    [
        ("@template-hash@", admission::template_hash()),
        ("@name-pattern@", NAME_PATTERN.to_owned()),
        ("@name-wanted@", Kind::Name.wanted()),
        ("@policy-configmap-default@", POLICY_CONFIGMAP.to_owned()),
        ("@tls-secret-default@", TLS_SECRET.to_owned()),
        ("@names@", list(&names)),
        ("@system-namespaces@", list(&SYSTEM_NAMESPACES)),
    ]
    .iter()
    .fold(CHART_HEAD.to_owned(), |text, (marker, with)| text.replace(marker, with))
}

/// The same objects as a Helm template.
fn chart() -> String {
    let mut text =
        String::from("{{/* Generated by callback-guard admission-policy --helm. Do not edit. */}}\n");
    text.push_str(&head());
    text.push_str(&documents(&admission::cluster_objects()));
    text.push_str("{{- range $namespaces }}\n");
    text.push_str(&documents(&admission::namespace_objects()));
    text.push_str("{{- end }}\n");
    // Whole scalars become texts in the quotes of JSON, which YAML reads too; the others are inside of texts, and are names
    // or hashes, which need no quotes there.
    let whole = |marker: &str| json!(marker).to_string();
    for (marker, reference) in [
        (whole(markers::SETTINGS), "{{ toRawJson $settingsText }}"),
        (whole(markers::NAMESPACES), "{{ toRawJson (toRawJson $namespaces) }}"),
        (whole(markers::PULL_SECRETS), "{{ toRawJson $pullSecretsText }}"),
        (whole(markers::POLICY_CONFIGMAP), "{{ toRawJson (index $settings \"policy-configmap\") }}"),
        (whole(markers::NAMESPACE), "{{ toRawJson . }}"),
        (whole(markers::OWN_NAMESPACE), "{{ toRawJson $.Release.Namespace }}"),
        (markers::OWN_NAMESPACE.to_owned(), "{{ $.Release.Namespace }}"),
        (markers::NAMESPACE.to_owned(), "{{ . }}"),
        (markers::HASH.to_owned(), "{{ $hash }}"),
    ] {
        text = text.replace(&marker, reference);
    }
    text
}
