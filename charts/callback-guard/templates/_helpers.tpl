{{- /* The name of the Deployment and of what belongs to it, at most 52 characters so that suffixes fit. A release may have a dot. */ -}}
{{- define "callback-guard.fullname" -}}
{{- $name := default "callback-guard" .Values.nameOverride -}}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{ default $full .Values.fullnameOverride | replace "." "-" | trunc 52 | trimSuffix "-" }}
{{- end -}}

{{- /* What selects the pods of the controller. */ -}}
{{- define "callback-guard.selectorLabels" -}}
app.kubernetes.io/name: {{ default "callback-guard" .Values.nameOverride | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: controller
{{- end -}}

{{- /* The labels of an object: those of its own (`own`), of the chart, of commonLabels, and further ones (`more`); the first that sets a
label wins. */ -}}
{{- define "callback-guard.labels" -}}
{{- $chart := dict
  "app.kubernetes.io/name" (default "callback-guard" .root.Values.nameOverride)
  "app.kubernetes.io/instance" .root.Release.Name
  "app.kubernetes.io/version" .root.Chart.AppVersion
  "app.kubernetes.io/managed-by" .root.Release.Service
  "helm.sh/chart" (printf "callback-guard-%s" .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-") -}}
{{- toYaml (merge (dict) $chart (default dict .own) (default dict .root.Values.commonLabels) (default dict .more)) -}}
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
{{- $injection := default dict .Values.injection -}}
{{- $mode := default "auto" $injection.mode -}}
{{- $served := or (.Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy") (semverCompare ">=1.36-0" $version) -}}
{{- if eq $mode "webhook" -}}
{{- include "callback-guard.problem" (list $read "injection.mode" "webhook is not in this version: remove it on Kubernetes 1.36 or later; on an older cluster inject the sidecar with `callback-guard inject -f`, without this chart") -}}
{{- else if not $served -}}
{{- include "callback-guard.problem" (list $read "injection.mode" (printf "%s needs admission policies, which Kubernetes serves since 1.36, and this cluster is %s: upgrade it, or inject the sidecar with `callback-guard inject -f`, without this chart" $mode $version)) -}}
{{- end -}}
{{- if not (kindIs "invalid" $injection.timeoutSeconds) -}}
{{- include "callback-guard.problem" (list $read "injection.timeoutSeconds" "is only for mode webhook, which is not in this version: remove it") -}}
{{- end -}}
{{- $network := default dict .Values.networkPolicy -}}
{{- if and $network.from (not $network.enabled) -}}
{{- include "callback-guard.problem" (list $read "networkPolicy.from" "has no effect: set networkPolicy.enabled to true, or remove it") -}}
{{- end -}}
{{- $ours := dict "--own-namespace" "namespaceOverride" "--namespaces" "namespaces" "--trust-namespaces" "trust.namespaces"
  "--external-tls" "namespaces[].tls.source" "--services" "namespaces[].services"
  "--policy-configmap" "sidecar.policy-configmap" "--tls-secret" "sidecar.tls-secret" "--set" "sidecar" -}}
{{- range $index, $argument := (default dict .Values.controller).extraArgs -}}
{{- with get $ours (splitList "=" $argument | first) -}}
{{- include "callback-guard.problem" (list $read (printf "controller.extraArgs[%d]" $index) (printf "%q is set from %s: remove it" $argument .)) -}}
{{- end -}}
{{- end -}}
{{- range $path, $labels := dict "commonLabels" .Values.commonLabels "injection.labels" $injection.labels "controller.podLabels" (default dict .Values.controller).podLabels -}}
{{- range $label, $_ := $labels -}}
{{- if hasPrefix "callback-guard.io/" $label -}}
{{- include "callback-guard.problem" (list $read $path (printf "%q is a label of callback-guard itself: remove it" $label)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $values.namespaces $values.trustNamespaces (eq (len $values.namespaces) (len $values.externalTls)) -}}
{{- include "callback-guard.problem" (list $read "trust.namespaces" "the controller publishes its own CA there, and no namespace has a certificate of it: remove it, and create the ConfigMap callback-guard-ca with the key ca.crt in the namespace of OpenIM") -}}
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
runAsUser: {{ float64 $user | int64 }}
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

{{- /* An object with its labels, and with more labels and annotations. */ -}}
{{- define "callback-guard.object" -}}
{{- $metadata := .object.metadata -}}
{{- $_ := set $metadata "labels" (include "callback-guard.labels" (dict "root" .root "own" $metadata.labels "more" .labels) | fromYaml) -}}
{{- with .annotations }}{{ $_ := set $metadata "annotations" (merge (dict) (default dict $metadata.annotations) .) }}{{ end -}}
---
{{ toYaml .object }}
{{- end -}}
