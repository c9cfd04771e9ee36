{{- define "tandem.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 45 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* The components that have pods of their own besides Redis, as {"names": [...]}. */ -}}
{{- define "tandem.pools" -}}
{{- dict "names" (concat (list "gateway" "prefill" "decode") (ternary (list "embed") list .Values.embed.enabled)) | toJson -}}
{{- end -}}

{{- /* Takes {root, role}. */ -}}
{{- define "tandem.name" -}}
{{ include "tandem.fullname" .root }}-{{ .role }}
{{- end -}}

{{- define "tandem.selectorLabels" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .role }}
{{- end -}}

{{- define "tandem.labels" -}}
{{ include "tandem.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | quote }}
{{- end -}}

{{- define "tandem.metadata" -}}
name: {{ include "tandem.name" . }}
labels:
  {{- include "tandem.labels" . | nindent 2 }}
{{- end -}}

{{- /* Takes {root, image: {repository, digest}}. */ -}}
{{- define "tandem.image" -}}
{{- $repository := .image.repository -}}
{{- with .root.Values.image.registry }}{{ $repository = printf "%s/%s" . $repository }}{{ end -}}
{{- if .image.digest -}}
{{ $repository }}@{{ .image.digest }}
{{- else -}}
{{ $repository }}:{{ default .root.Chart.AppVersion .root.Values.image.tag }}
{{- end -}}
{{- end -}}

{{- define "tandem.workerImage" -}}
{{- $image := ternary .root.Values.image.workerCuda .root.Values.image.workerCpu (gt (int .pool.gpu.count) 0) -}}
{{- include "tandem.image" (dict "root" .root "image" $image) -}}
{{- end -}}

{{- /* Takes {root, id}. */ -}}
{{- define "tandem.podSecurity" -}}
runAsNonRoot: true
{{- if not .root.Values.openshift }}
runAsUser: {{ .id }}
runAsGroup: {{ .id }}
fsGroup: {{ .id }}
{{- end }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- /* Takes whether the root file system is read-only. */ -}}
{{- define "tandem.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: {{ . }}
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* What every pod of Tandem has in its spec, whatever its role. Takes {root, role, pool}. */ -}}
{{- define "tandem.podCommon" -}}
serviceAccountName: {{ include "tandem.name" . }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- include "tandem.podSecurity" (dict "root" .root "id" 10001) | nindent 2 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{- /* Where pods may run. Takes {root, role, pool}. */ -}}
{{- define "tandem.placement" -}}
{{- with .pool.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pool.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pool.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if dig "topologySpread" "enabled" false .pool }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: {{ .pool.topologySpread.key }}
    whenUnsatisfiable: {{ .pool.topologySpread.whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "tandem.selectorLabels" . | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
{{- end }}
{{- with .pool.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with dig "runtimeClassName" "" .pool }}
runtimeClassName: {{ . }}
{{- end }}
{{- end -}}

{{- /* The step of an orderly shutdown at which a role is told to stop, in seconds. Takes {root, role}. */ -}}
{{- define "tandem.preStopSeconds" -}}
{{- $step := get (dict "gateway" 1 "decode" 2 "embed" 2 "prefill" 3 "redis" 4) .role -}}
{{- mul $step (int .root.Values.shutdownStepSeconds) -}}
{{- end -}}

{{- define "tandem.preStop" -}}
preStop:
  exec:
    command: [sleep, {{ include "tandem.preStopSeconds" . | quote }}]
{{- end -}}

{{- /* preStop, drain, and time to close what is open. Takes {root, role, pool}. */ -}}
{{- define "tandem.graceSeconds" -}}
{{- add (include "tandem.preStopSeconds" . | int) (int .pool.drainDelaySeconds) (int .pool.drainSeconds) 30 -}}
{{- end -}}

{{- define "tandem.clusterSecretName" -}}
{{- default (include "tandem.fullname" .) .Values.clusterSecret.name -}}
{{- end -}}

{{- define "tandem.redisPasswordSecretName" -}}
{{- default (include "tandem.fullname" .) .Values.redis.internal.passwordSecret.name -}}
{{- end -}}

{{- /* REDIS_PASSWORD, if there is one, must stand before the URL that refers to it. */ -}}
{{- define "tandem.redisEnv" -}}
{{- $external := .Values.redis.external -}}
{{- if eq .Values.redis.mode "internal" -}}
- name: REDIS_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ include "tandem.redisPasswordSecretName" . }}
      key: {{ .Values.redis.internal.passwordSecret.key }}
- name: TANDEM_REDIS_URL
  value: redis://:$(REDIS_PASSWORD)@{{ include "tandem.fullname" . }}-redis:6379/0
{{- else if $external.urlSecret.name -}}
- name: TANDEM_REDIS_URL
  valueFrom:
    secretKeyRef:
      name: {{ $external.urlSecret.name }}
      key: {{ $external.urlSecret.key }}
{{- else if $external.passwordSecret.name -}}
- name: REDIS_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ $external.passwordSecret.name }}
      key: {{ $external.passwordSecret.key }}
- name: TANDEM_REDIS_URL
  {{- $user := ternary "@" "://" (contains "@" $external.url) }}
  value: {{ replace $user (printf "%s:$(REDIS_PASSWORD)@" (trimSuffix "@" $user)) $external.url | quote }}
{{- else -}}
- name: TANDEM_REDIS_URL
  value: {{ $external.url | quote }}
{{- end }}
{{- end -}}

{{- /* A quantity of memory in whole bytes. */ -}}
{{- define "tandem.bytes" -}}
{{- $decimal := dict "" 1 "m" 0.001 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "P" 1000000000000000 -}}
{{- $binary := dict "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 -}}
{{- mulf (regexFind "^[0-9.]+" . | float64) (regexFind "[A-Za-z]*$" . | get (merge $decimal $binary)) | int64 -}}
{{- end -}}

{{- /* What the own Redis may hold, in bytes; the rest of its limit is for buffers and for rewrites of its log. */ -}}
{{- define "tandem.redisMaxMemory" -}}
{{- $limit := dig "limits" "memory" "0" .Values.redis.internal.resources -}}
{{- div (mul 60 (include "tandem.bytes" $limit | int64)) 100 -}}
{{- end -}}

{{- /* A number with all its digits, or a text. Values of a file are floating, and would render as 1e+06. */ -}}
{{- define "tandem.settingText" -}}
{{- if kindIs "string" . }}{{ . }}{{ else }}{{ toJson . }}{{ end -}}
{{- end -}}

{{- define "tandem.settingsEnv" -}}
{{- range $name, $value := . }}
- name: TANDEM_{{ upper $name }}
  value: {{ include "tandem.settingText" $value | quote }}
{{- end }}
{{- end -}}

{{- /* The environment that gateways and workers share. Takes {root, role, pool}. */ -}}
{{- define "tandem.commonEnv" -}}
- name: HOME
  value: /home/tandem
- name: TANDEM_HOST
  value: 0.0.0.0
- name: TANDEM_ADMIN_HOST
  value: 0.0.0.0
- name: TANDEM_ADMIN_PORT
  value: "9090"
- name: TANDEM_SECRET_FILE
  value: /run/secrets/tandem/cluster-secret
{{- if .root.Values.tls.secretName }}
- name: TANDEM_TLS_CA_FILE
  value: /run/secrets/tandem-tls/ca.crt
- name: TANDEM_TLS_CERT_FILE
  value: /run/secrets/tandem-tls/tls.crt
- name: TANDEM_TLS_KEY_FILE
  value: /run/secrets/tandem-tls/tls.key
{{- end }}
{{ include "tandem.redisEnv" .root }}
- name: TANDEM_LOG_LEVEL
  value: {{ .root.Values.log.level }}
- name: TANDEM_LOG_JSON
  value: {{ .root.Values.log.json | quote }}
- name: TANDEM_DRAIN_DELAY_S
  value: {{ .pool.drainDelaySeconds | int | quote }}
- name: TANDEM_DRAIN_TIMEOUT_S
  value: {{ .pool.drainSeconds | int | quote }}
{{- include "tandem.settingsEnv" .pool.settings }}
{{- with .pool.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "tandem.secretVolume" -}}
- name: cluster-secret
  secret:
    secretName: {{ include "tandem.clusterSecretName" . }}
    defaultMode: 0440
    items:
      - key: {{ .Values.clusterSecret.key }}
        path: cluster-secret
{{- with .Values.tls.secretName }}
- name: tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items:
      - {key: ca.crt, path: ca.crt}
      - {key: tls.crt, path: tls.crt}
      - {key: tls.key, path: tls.key}
{{- end }}
{{- end -}}

{{- define "tandem.secretMount" -}}
- name: cluster-secret
  mountPath: /run/secrets/tandem
  readOnly: true
{{- if .Values.tls.secretName }}
- name: tls
  mountPath: /run/secrets/tandem-tls
  readOnly: true
{{- end }}
{{- end -}}
