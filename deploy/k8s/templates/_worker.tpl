{{- /* The Deployment of a pool of workers, those for embeddings included. Takes {root, role, pool}. */ -}}
{{- define "tandem.workerDeployment" -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "tandem.metadata" . | nindent 2 }}
spec:
  {{- if eq .pool.autoscaling.mode "none" }}
  replicas: {{ .pool.replicas | int }}
  {{- end }}
  {{- $surges := eq (include "tandem.strategy" .) "surge" }}
  strategy:
    type: RollingUpdate
    rollingUpdate:
      maxSurge: {{ ternary 1 0 $surges }}
      maxUnavailable: {{ ternary 0 1 $surges }}
  # The others must have seen a new worker before an old one leaves.
  minReadySeconds: 5
  progressDeadlineSeconds: {{ add (int .pool.startupSeconds) 600 }}
  selector:
    matchLabels:
      {{- include "tandem.selectorLabels" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "tandem.labels" . | nindent 8 }}
        {{- with .pool.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with .pool.podAnnotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      {{- include "tandem.podCommon" . | nindent 6 }}
      {{- include "tandem.placement" . | nindent 6 }}
      terminationGracePeriodSeconds: {{ include "tandem.graceSeconds" . }}
      containers:
        - name: {{ .role }}
          image: {{ include "tandem.workerImage" . | quote }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          command: [python, -m, services.cli, {{ .role }}]
          securityContext:
            {{- include "tandem.containerSecurity" .pool.readOnlyRootFilesystem | nindent 12 }}
          env:
            {{- include "tandem.commonEnv" . | nindent 12 }}
            {{- include "tandem.workerEnv" . | nindent 12 }}
          ports:
            - {name: grpc, containerPort: 50051, protocol: TCP}
            - {name: admin, containerPort: 9090, protocol: TCP}
          startupProbe:
            httpGet: {path: /readyz, port: admin}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: {{ div (add (int .pool.startupSeconds) 9) 10 }}
          readinessProbe:
            httpGet: {path: /readyz, port: admin}
            periodSeconds: 5
            timeoutSeconds: 2
            failureThreshold: 3
          # A restart costs a reload of the model, so only a process that is surely dead gets one.
          livenessProbe:
            httpGet: {path: /livez, port: admin}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 6
          lifecycle:
            {{- include "tandem.preStop" . | nindent 12 }}
          resources:
            {{- include "tandem.workerResources" .pool | nindent 12 }}
          volumeMounts:
            {{- include "tandem.secretMount" .root | nindent 12 }}
            - {name: cache, mountPath: /var/cache/tandem}
            - {name: home, mountPath: /home/tandem}
            - {name: tmp, mountPath: /tmp}
            - {name: shared-memory, mountPath: /dev/shm}
            {{- if eq .root.Values.model.source "claim" }}
            - {name: models, mountPath: /models, readOnly: true}
            {{- end }}
      volumes:
        {{- include "tandem.secretVolume" .root | nindent 8 }}
        - name: cache
          {{- with .root.Values.cache.claim }}
          persistentVolumeClaim:
            claimName: {{ . }}
          {{- else }}
          emptyDir:
            sizeLimit: {{ .root.Values.cache.sizeLimit | quote }}
          {{- end }}
        - name: home
          emptyDir:
            sizeLimit: 1Gi
        - name: tmp
          emptyDir:
            sizeLimit: 1Gi
        - name: shared-memory
          emptyDir:
            medium: Memory
            sizeLimit: {{ .pool.sharedMemory | quote }}
        {{- if eq .root.Values.model.source "claim" }}
        - name: models
          persistentVolumeClaim:
            claimName: {{ .root.Values.model.claim }}
            readOnly: true
        {{- end }}
{{- end -}}

{{- define "tandem.workerEnv" -}}
- name: TANDEM_PORT
  value: "50051"
- name: TANDEM_ADVERTISE_HOST
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
- name: TANDEM_CACHE_DIR
  value: /var/cache/tandem
- name: TANDEM_DEVICE
  value: {{ ternary "cuda:0" "cpu" (gt (int .pool.gpu.count) 0) | quote }}
- name: HF_HOME
  value: /var/cache/tandem/huggingface
{{- if ne .role "embed" }}
- name: TANDEM_MODEL
  value: {{ include "tandem.model" .root | quote }}
{{- with .root.Values.model.servedName }}
- name: TANDEM_SERVED_MODEL_NAME
  value: {{ . | quote }}
{{- end }}
- name: TANDEM_DTYPE
  value: {{ .root.Values.model.dtype }}
- name: TANDEM_TRANSPORT
  value: {{ .root.Values.transport }}
{{- if ne .root.Values.model.source "hub" }}
- name: HF_HUB_OFFLINE
  value: "1"
{{- end }}
{{- end }}
{{- with .root.Values.model.tokenSecret }}
{{- if .name }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ .name }}
      key: {{ .key }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "tandem.model" -}}
{{- with .Values.model -}}
{{- if eq .source "hub" }}{{ .id }}{{ else if eq .source "claim" }}{{ clean (printf "/models/%s" .path) }}{{ else }}{{ .path }}{{ end -}}
{{- end -}}
{{- end -}}

{{- define "tandem.strategy" -}}
{{- if eq .pool.strategy "auto" }}{{ ternary "replace" "surge" (gt (int .pool.gpu.count) 0) }}{{ else }}{{ .pool.strategy }}{{ end -}}
{{- end -}}

{{- /* The given resources, and the GPUs, which must be equal in requests and limits. Takes the pool. */ -}}
{{- define "tandem.workerResources" -}}
{{- $resources := deepCopy .resources -}}
{{- if gt (int .gpu.count) 0 -}}
{{- $gpus := dict .gpu.resource (.gpu.count | int | toString) -}}
{{- $resources = mustMerge $resources (dict "requests" $gpus "limits" $gpus) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{- /* Names of the pods of a pool, for monitoring and people; workers find each other through Redis. */ -}}
{{- define "tandem.workerService" -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "tandem.metadata" . | nindent 2 }}
spec:
  type: ClusterIP
  clusterIP: None
  selector:
    {{- include "tandem.selectorLabels" . | nindent 4 }}
  ports:
    - {name: grpc, port: 50051, targetPort: grpc, protocol: TCP}
    - {name: admin, port: 9090, targetPort: admin, protocol: TCP}
{{- end -}}
