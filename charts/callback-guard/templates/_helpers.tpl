{{- /* The name of the Deployment and of what belongs to it, at most 52 characters so that suffixes fit. */ -}}
{{- define "callback-guard.fullname" -}}
{{- $name := default "callback-guard" .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains $name .Release.Name -}}
{{ .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{- define "callback-guard.selectorLabels" -}}
app.kubernetes.io/name: {{ default "callback-guard" .Values.nameOverride | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: controller
{{- end -}}

{{- /* Labels of all objects. */ -}}
{{- define "callback-guard.labels" -}}
{{- $labels := dict
  "app.kubernetes.io/name" (default "callback-guard" .Values.nameOverride)
  "app.kubernetes.io/instance" .Release.Name
  "app.kubernetes.io/version" .Chart.AppVersion
  "app.kubernetes.io/managed-by" .Release.Service
  "helm.sh/chart" (printf "callback-guard-%s" .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-") -}}
{{- toYaml (mergeOverwrite (deepCopy .Values.commonLabels) $labels) -}}
{{- end -}}

{{- /* Whether lookup sees the cluster: it does not in `helm template` and in a client-side dry run. */ -}}
{{- define "callback-guard.sees-cluster" -}}
{{- if lookup "v1" "Namespace" "" "kube-system" }}true{{ end -}}
{{- end -}}

{{- /* What is set, as JSON, after all checks. Every template begins with it, so that nothing is rendered from wrong values. */ -}}
{{- define "callback-guard.checked" -}}
{{- $values := include "callback-guard.values" . | fromJson -}}
{{- $read := dict "problems" $values.problems -}}
{{- $sees := include "callback-guard.sees-cluster" . -}}
{{- $version := .Capabilities.KubeVersion.Version -}}
{{- $served := or (.Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy") (semverCompare ">=1.36-0" $version) -}}
{{- if eq .Values.injection.mode "webhook" -}}
{{- include "callback-guard.problem" (list $read "injection.mode" "webhook is not in this version: remove it on Kubernetes 1.36 or later; on an older cluster inject the sidecar with `callback-guard inject -f`, without this chart") -}}
{{- else if not $served -}}
{{- include "callback-guard.problem" (list $read "injection.mode" (printf "%s needs admission policies, which Kubernetes serves since 1.36, and this cluster is %s: upgrade it, or inject the sidecar with `callback-guard inject -f`, without this chart" .Values.injection.mode $version)) -}}
{{- end -}}
{{- if not (kindIs "invalid" .Values.injection.timeoutSeconds) -}}
{{- include "callback-guard.problem" (list $read "injection.timeoutSeconds" "is only for mode webhook, which is not in this version: remove it") -}}
{{- end -}}
{{- if and .Values.networkPolicy.from (not .Values.networkPolicy.enabled) -}}
{{- include "callback-guard.problem" (list $read "networkPolicy.from" "has no effect: set networkPolicy.enabled to true, or remove it") -}}
{{- end -}}
{{- range $index, $entry := .Values.namespaces -}}
{{- if kindIs "map" $entry -}}
{{- $tls := default dict $entry.tls -}}
{{- $path := printf "namespaces[%d].tls" $index -}}
{{- if eq (default "" $tls.source) "certManager" -}}
{{- if not $tls.issuerRef -}}
{{- include "callback-guard.problem" (list $read (printf "%s.issuerRef" $path) "is missing beside source certManager: set its name, and its kind if it is not Issuer") -}}
{{- end -}}
{{- if and $sees (not ($.Capabilities.APIVersions.Has "cert-manager.io/v1/Certificate")) -}}
{{- include "callback-guard.problem" (list $read (printf "%s.source" $path) "certManager: this cluster has no Certificate of cert-manager.io/v1: install cert-manager, or set it to controller or secret") -}}
{{- end -}}
{{- else if $tls.issuerRef -}}
{{- include "callback-guard.problem" (list $read (printf "%s.issuerRef" $path) "is only for source certManager: remove it, or set the source") -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $sees -}}
{{- $needed := list -}}
{{- range $index, $name := $values.namespaces }}{{ $needed = append $needed (list (printf "namespaces[%d].name" $index) $name) }}{{ end -}}
{{- range $index, $name := $values.trustNamespaces }}{{ $needed = append $needed (list "trust.namespaces" $name) }}{{ end -}}
{{- with .Values.namespaceOverride }}{{ $needed = append $needed (list "namespaceOverride" .) }}{{ end -}}
{{- range $needed -}}
{{- if not (lookup "v1" "Namespace" "" (last .)) -}}
{{- include "callback-guard.problem" (list $read (first .) (printf "there is no namespace %q: create it first (kubectl create namespace %s), or remove it" (last .) (last .))) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with $read.problems }}{{ fail (join "\n" (prepend . "the values have problems, and nothing was changed:")) }}{{ end -}}
{{- toRawJson $values -}}
{{- end -}}

{{- /* The security context of our own pods and containers: those that Pod Security `restricted` asks for. */ -}}
{{- define "callback-guard.podSecurity" -}}
runAsNonRoot: true
{{- $user := dig "run-as-user" "65532" .settings }}
{{- if ne $user "none" }}
runAsUser: {{ $user }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}
{{- define "callback-guard.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities:
  drop:
  - ALL
readOnlyRootFilesystem: true
{{- end -}}

{{- /* An object with the labels of all objects, and with more labels and annotations. */ -}}
{{- define "callback-guard.object" -}}
{{- $metadata := .object.metadata -}}
{{- $_ := set $metadata "labels" (merge (dict) (include "callback-guard.labels" .root | fromYaml) (default dict $metadata.labels) (default dict .labels)) -}}
{{- with .annotations }}{{ $_ := set $metadata "annotations" (merge (dict) (default dict $metadata.annotations) .) }}{{ end -}}
---
{{ toYaml .object }}
{{- end -}}
