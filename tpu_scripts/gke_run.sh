#!/usr/bin/env bash
# Trains on the TPU nodes of the GKE cluster that kubectl is set to, as a JobSet, and follows the log until it ends.
# JobSet starts what was preempted again; a second call follows the job that is there. A finished or failed job of the
# same name makes place for the new one, which resumes its run directory.
#   tpu_scripts/gke_run.sh --storage=gs://BUCKET --image=IMAGE [--topology=v5p:4x4x4] -- --gin_file=FILE.gin [...]
set -euo pipefail
export ON=gke
# shellcheck source=machines.sh
source "$(dirname "$0")/machines.sh"
need STORAGE IMAGE
[[ $STORAGE == gs://* ]] || die "STORAGE=$STORAGE: pods mount a bucket, gs://BUCKET."
((${#TRAIN[@]})) || die "nothing to train: what training takes follows a lone --, as in -- --gin_file=pp_tf.gin"

quoted=""
for word in "--model_dir=$MODEL_DIR" "${TRAIN[@]}"; do quoted+=", '${word//"'"/"''"}'"; done # single quotes of YAML
declare -A value=([NAME]="$NAME" [MACHINES]="$machines" [GKE_ACCELERATOR]="$gke_accelerator" [IMAGE]="$IMAGE"
  [SHAPE]="${TOPOLOGY#*:}" [SERVICE_ACCOUNT]="${SERVICE_ACCOUNT:-default}" [BUCKET]="${STORAGE#gs://}"
  [ARGUMENTS]="[${quoted#, }]")
manifest="$(mktemp --suffix=.yaml)" && trap 'rm -f -- "$manifest"' EXIT
while IFS= read -r line; do # KEY: anything # WORD  ->  KEY: the value of WORD
  word="${line##* # }"
  if [[ $line == *": "*" # "* && -n ${value[$word]:-} ]]; then line="${line%%: *}: ${value[$word]}"; fi
  printf '%s\n' "$line"
done < "$here/gke_jobset.yaml" > "$manifest"
if [[ -n $DRY_RUN ]]; then cat "$manifest"; fi

ask() { if [[ -z $DRY_RUN ]]; then kubectl get jobset "$NAME" --ignore-not-found -o jsonpath="{.status.$1}"; fi; }
ended="$(ask terminalState)"
if [[ -n $ended ]]; then run kubectl delete jobset "$NAME" --wait; fi
run kubectl apply -f "$manifest"
newest=(-l "jobset.sigs.k8s.io/jobset-name=$NAME,batch.kubernetes.io/job-completion-index=0")
while ended="$(ask terminalState)" && [[ -z $ended ]]; do # a log ends with its pod; the next one follows
  run kubectl logs "${newest[@]}" --follow --pod-running-timeout=1h --tail=-1 || true
  if [[ -n $DRY_RUN ]]; then exit 0; fi
  sleep "$POLL_SECONDS"
done
echo "$NAME: $ended after $(ask restarts) restarts." && [[ $ended == Completed ]]
