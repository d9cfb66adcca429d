{{- define "callback-guard.text" -}}
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
{{- define "callback-guard.namespace" -}}
{{- $name := include "callback-guard.text" . -}}
{{- if not (regexMatch "@namespace-pattern@" $name) -}}
{{- fail (printf "%s: Invalid value: %q: @namespace-wanted@" .name $name) -}}
{{- end -}}
{{ $name }}
{{- end -}}
{{- define "callback-guard.name" -}}
{{- $name := include "callback-guard.text" . -}}
{{- if or (gt (len $name) 253) (not (regexMatch "@name-pattern@" $name)) -}}
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
{{- $name := include "callback-guard.namespace" (dict "name" $path "value" $namespace.name) -}}
{{- if has $name (list @system-namespaces@) }}{{ fail (printf "%s: %q: pods there never get a sidecar" $path $name) }}{{ end -}}
{{- if eq $name $.Release.Namespace }}{{ fail (printf "%s: %q is the namespace of this release, whose pods never get a sidecar" $path $name) }}{{ end -}}
{{- if has $name $namespaces }}{{ fail (printf "%s: %q is listed twice" $path $name) }}{{ end -}}
{{- $namespaces = append $namespaces $name -}}
{{- end -}}
{{- $settingsText := toRawJson $settings -}}
{{- $pullSecretsText := toRawJson $pullSecrets -}}
{{- $hash := printf "%s\n%s\n%s" "@template-hash@" $settingsText $pullSecretsText | sha256sum | trunc 16 -}}
