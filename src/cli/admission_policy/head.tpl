{{- /* Notes a problem: a list of the values read so far, the path, and what is wrong. */ -}}
{{- define "callback-guard.problem" -}}
{{- $read := index . 0 -}}
{{- $_ := set $read "problems" (append $read.problems (printf "%s: %s" (index . 1) (index . 2))) -}}
{{- end -}}
{{- /* The text of a value. Helm reads every number of YAML as a float64, and prints a large one as 1e+09. */ -}}
{{- define "callback-guard.text" -}}
{{- if kindIs "invalid" .value -}}
{{- else if or (kindIs "string" .value) (kindIs "int64" .value) -}}
{{ .value }}
{{- else if and (kindIs "float64" .value) (eq (float64 (int64 .value)) .value) -}}
{{ int64 .value }}
{{- else -}}
{{- include "callback-guard.problem" (list .read .name (printf "Invalid value: %s: must be a string: put it in quotes" (toRawJson .value))) -}}
{{- end -}}
{{- end -}}
{{- /* The number of a text that fits its pattern: of milliseconds, thousandths of a core, MiB, or as it is. */ -}}
{{- define "callback-guard.number" -}}
{{- $number := 0.0 -}}
{{- range regexFindAll "[0-9.]+[a-zA-Z]*" .text -1 -}}
{{- $unit := regexFind "[a-zA-Z]*$" . -}}
{{- $factor := get (dict "ms" 1 "s" 1000 "h" 3600000 "Mi" 1 "Gi" 1024 "m" (eq $.unit "milli" | ternary 1 60000) "" (eq $.unit "milli" | ternary 1000 1)) $unit -}}
{{- $number = addf $number (mulf (float64 (trimSuffix $unit .)) $factor) -}}
{{- end -}}
{{ round $number 0 | int64 }}
{{- end -}}
{{- /* The text of a value of a kind; empty if it is not set. */ -}}
{{- define "callback-guard.setting" -}}
{{- $text := include "callback-guard.text" . -}}
{{- $kind := .kind -}}
{{- $good := has $text (default list $kind.words) -}}
{{- if and (not $good) $kind.pattern (le (len $text) (int $kind.length)) (regexMatch $kind.pattern $text) -}}
{{- $good = true -}}
{{- if $kind.unit -}}
{{- $number := include "callback-guard.number" (dict "text" $text "unit" $kind.unit) | int64 -}}
{{- $good = and (ge $number (int64 $kind.least)) (le $number (int64 $kind.most)) (eq (mod $number (int64 (default 1 $kind.whole))) 0) -}}
{{- end -}}
{{- end -}}
{{- if and (not $good) (or $text .required) -}}
{{- include "callback-guard.problem" (list .read .name (printf "Invalid value: %q: %s" $text $kind.wanted)) -}}
{{- end -}}
{{ $text }}
{{- end -}}
{{- /* What is set, as JSON: settings and image pull secrets, their hash, the namespaces, and all problems with the values. */ -}}
{{- define "callback-guard.values" -}}
{{- $name := @name@ -}}
{{- $namespace := @namespace@ -}}
{{- $settings := dict "policy-configmap" "@policy-configmap-default@" "tls-secret" "@tls-secret-default@" -}}
{{- $read := dict "problems" list -}}
{{- $own := default .Release.Namespace .Values.namespaceOverride -}}
{{- $kinds := dict @kinds@ -}}
{{- $sidecar := default dict .Values.sidecar -}}
{{- if not (kindIs "map" $sidecar) -}}
{{- include "callback-guard.problem" (list $read "sidecar" "must be an object with the settings of all sidecars") -}}
{{- $sidecar = dict -}}
{{- end -}}
{{- range $key, $value := $sidecar -}}
{{- $path := printf "sidecar.%s" $key -}}
{{- if hasKey $kinds $key -}}
{{- /* In YAML the bare word off is false. */ -}}
{{- if and (eq $key "log-level") (kindIs "bool" $value) (not $value) }}{{ $value = "off" }}{{ end -}}
{{- /* And true and false need no quotes here. */ -}}
{{- if and (kindIs "bool" $value) (has "true" (default list (get $kinds $key).words)) }}{{ $value = toString $value }}{{ end -}}
{{- with include "callback-guard.setting" (dict "read" $read "name" $path "value" $value "kind" (get $kinds $key)) -}}
{{- $_ := set $settings $key . -}}
{{- end -}}
{{- else -}}
{{- include "callback-guard.problem" (list $read $path (printf "Unknown setting: known are %s" (join ", " (keys $kinds | sortAlpha)))) -}}
{{- end -}}
{{- end -}}
{{- if not $read.problems -}}
{{- $all := merge (dict) $settings (dict @defaults@) -}}
{{- range list (list "cpu-request" "cpu-limit" "milli") (list "memory-request" "memory-limit" "mebi") -}}
{{- $asked := get $settings (index . 0) -}}
{{- $most := get $all (index . 1) -}}
{{- if and $asked (ne $most "none") -}}
{{- $unit := index . 2 -}}
{{- if gt (include "callback-guard.number" (dict "text" $asked "unit" $unit) | int64) (include "callback-guard.number" (dict "text" $most "unit" $unit) | int64) -}}
{{- include "callback-guard.problem" (list $read (printf "sidecar.%s" (index . 0)) (printf "Invalid value: %q: is more than %s, which is %s" $asked (index . 1) $most)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- /* int64 takes a text with a zero in front as octal. */ -}}
{{- $ports := list (int64 (float64 (get $all "listen-port"))) (int64 (float64 (get $all "admin-port"))) -}}
{{- if eq (first $ports) (last $ports) -}}
{{- $at := hasKey $settings "admin-port" | ternary (list "admin-port" "listen-port") (list "listen-port" "admin-port") -}}
{{- include "callback-guard.problem" (list $read (printf "sidecar.%s" (first $at)) (printf "Invalid value: %q: %s is the same" (get $settings (first $at)) (last $at))) -}}
{{- end -}}
{{- with get $settings "upstream-port" -}}
{{- if has (int64 (float64 .)) $ports }}{{ include "callback-guard.problem" (list $read "sidecar.upstream-port" (printf "Invalid value: %q: @own-port@" .)) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- if eq (get $settings "policy-configmap") "@authority@" -}}
{{- include "callback-guard.problem" (list $read "sidecar.policy-configmap" "Invalid value: \"@authority@\": @authority-reason@") -}}
{{- end -}}
{{- $image := default dict .Values.image -}}
{{- if not (kindIs "map" $image) -}}
{{- include "callback-guard.problem" (list $read "image" "must be an object with registry, repository, and tag or digest") -}}
{{- else -}}
{{- $parts := dict -}}
{{- $known := list "registry" "repository" "tag" "digest" "pullPolicy" -}}
{{- range $key, $value := $image -}}
{{- $path := printf "image.%s" $key -}}
{{- if has $key $known -}}
{{- $_ := set $parts $key (include "callback-guard.text" (dict "read" $read "name" $path "value" $value)) -}}
{{- else -}}
{{- include "callback-guard.problem" (list $read $path (printf "Unknown value: known are %s" (join ", " $known))) -}}
{{- end -}}
{{- end -}}
{{- $tag := default .Chart.AppVersion $parts.tag -}}
{{- if not $parts.repository -}}
{{- include "callback-guard.problem" (list $read "image.repository" "is missing: set it to the image's name without registry and tag") -}}
{{- else if not (or $parts.digest $tag) -}}
{{- include "callback-guard.problem" (list $read "image.tag" "is missing, and the chart has no appVersion") -}}
{{- else -}}
{{- $reference := printf "%s%s" (empty $parts.registry | ternary "" (printf "%s/" $parts.registry)) $parts.repository -}}
{{- $reference = printf "%s%s" $reference (empty $parts.digest | ternary (printf ":%s" $tag) (printf "@%s" $parts.digest)) -}}
{{- $_ := set $settings "image" (include "callback-guard.setting" (dict "read" $read "name" "image" "value" $reference "kind" @image@)) -}}
{{- end -}}
{{- with $parts.pullPolicy -}}
{{- $_ := set $settings "image-pull-policy" (include "callback-guard.setting" (dict "read" $read "name" "image.pullPolicy" "value" . "kind" @pull-policy@)) -}}
{{- end -}}
{{- end -}}
{{- $pullSecrets := list -}}
{{- if not (kindIs "slice" (default list .Values.imagePullSecrets)) -}}
{{- include "callback-guard.problem" (list $read "imagePullSecrets" "must be a list of names") -}}
{{- else -}}
{{- range $index, $secret := .Values.imagePullSecrets -}}
{{- $path := printf "imagePullSecrets[%d]" $index -}}
{{- if kindIs "map" $secret }}{{ $path = printf "%s.name" $path }}{{ $secret = $secret.name }}{{ end -}}
{{- $pullSecrets = append $pullSecrets (include "callback-guard.setting" (dict "read" $read "name" $path "value" $secret "kind" $name "required" true)) -}}
{{- end -}}
{{- end -}}
{{- $pullSecrets = uniq $pullSecrets -}}
{{- $namespaces := list -}}
{{- $external := list -}}
{{- if not (and .Values.namespaces (kindIs "slice" .Values.namespaces)) -}}
{{- include "callback-guard.problem" (list $read "namespaces" "is missing: set it to a list of the namespaces whose pods may get a sidecar, each with its name") -}}
{{- else -}}
{{- range $index, $entry := .Values.namespaces -}}
{{- $path := printf "namespaces[%d]" $index -}}
{{- if not (kindIs "map" $entry) -}}
{{- include "callback-guard.problem" (list $read $path (printf "Invalid value: %s: must be an object with a name" (toRawJson $entry))) -}}
{{- else -}}
{{- $path = printf "%s.name" $path -}}
{{- $one := include "callback-guard.setting" (dict "read" $read "name" $path "value" $entry.name "kind" $namespace "required" true) -}}
{{- if has $one (list @system-namespaces@) }}{{ include "callback-guard.problem" (list $read $path (printf "%q: pods there never get a sidecar" $one)) }}{{ end -}}
{{- if eq $one $own }}{{ include "callback-guard.problem" (list $read $path (printf "%q is the namespace of this release, whose pods never get a sidecar" $one)) }}{{ end -}}
{{- if has $one $namespaces }}{{ include "callback-guard.problem" (list $read $path (printf "%q is listed twice" $one)) }}{{ end -}}
{{- $namespaces = append $namespaces $one -}}
{{- if not (has (dig "tls" "source" "controller" $entry) (list "" "controller")) }}{{ $external = append $external $one }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $trusting := list -}}
{{- $trust := default dict .Values.trust -}}
{{- if not (and (kindIs "map" $trust) (kindIs "slice" (default list $trust.namespaces))) -}}
{{- include "callback-guard.problem" (list $read "trust" "must be an object with a list of namespaces") -}}
{{- else -}}
{{- range $index, $value := $trust.namespaces -}}
{{- $path := printf "trust.namespaces[%d]" $index -}}
{{- $one := include "callback-guard.setting" (dict "read" $read "name" $path "value" $value "kind" $namespace "required" true) -}}
{{- if has $one (list @system-namespaces@) }}{{ include "callback-guard.problem" (list $read $path (printf "%q: pods there never get the CA" $one)) }}{{ end -}}
{{- if eq $one $own }}{{ include "callback-guard.problem" (list $read $path (printf "%q is the namespace of this release, whose pods never get the CA" $one)) }}{{ end -}}
{{- $trusting = append $trusting $one -}}
{{- end -}}
{{- end -}}
{{- $hash := printf "%s\n%s\n%s" "@template-hash@" (toRawJson $settings) (toRawJson $pullSecrets) | sha256sum | trunc 16 -}}
{{- toRawJson (dict "settings" $settings "pullSecrets" $pullSecrets "hash" $hash "ownNamespace" $own "namespaces" $namespaces "externalTls" $external "trustNamespaces" (uniq $trusting) "problems" $read.problems) -}}
{{- end -}}
{{- /* The admission policies, and the rights of the sidecars and of the controller. */ -}}
{{- define "callback-guard.admission" -}}
{{- $values := include "callback-guard.values" . | fromJson -}}
{{- with $values.problems }}{{ fail (join "\n" (prepend . "")) }}{{ end -}}
{{- $settings := $values.settings -}}
{{- $namespaces := $values.namespaces -}}
{{- $trusting := list -}}
{{- range $values.trustNamespaces }}{{ if not (has . $namespaces) }}{{ $trusting = append $trusting . }}{{ end }}{{ end -}}
{{- $settingsText := toRawJson $settings -}}
{{- $pullSecretsText := toRawJson $values.pullSecrets -}}
