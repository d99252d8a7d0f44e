#!/usr/bin/env bash
# Trains on the TPU nodes of the GKE cluster that kubectl is set to, as a JobSet, and follows the log until it ends.
# JobSet starts what was preempted again; a second call follows the job that is there. A finished or failed job of the
# same name makes place for the new one, which resumes its run directory.
#   tpu_scripts/gke_run.sh --storage=gs://BUCKET --image=IMAGE [--topology=v5p:4x4x4] -- --gin_file=FILE.gin [...]
set -euo pipefail
export ON=gke trains=1 takes="NAME TOPOLOGY STORAGE MODEL_DIR CACHE IMAGE SERVICE_ACCOUNT POLL_SECONDS"
# shellcheck source=machines.sh
source "$(dirname "$0")/machines.sh"
need STORAGE IMAGE
[[ $STORAGE == gs://* ]] || die "STORAGE=$STORAGE: pods mount a bucket, gs://BUCKET."
((${#TRAIN[@]})) || die "nothing to train: what training takes follows a lone --, as in -- --gin_file=pp_tf.gin"

[[ $MODEL_DIR == "$MOUNT/"* ]] || die "MODEL_DIR=$MODEL_DIR is not below $MOUNT: it would go with the pods."

manifest="$(mktemp --suffix=.yaml)" && trap 'rm -f -- "$manifest"' EXIT
filled > "$manifest"
if [[ -n $DRY_RUN ]]; then cat "$manifest"; fi

ask() { kubectl get jobset "$NAME" "${@:2}" -o jsonpath="{.status.$1}"; }
if [[ -z $DRY_RUN ]]; then ended="$(ask terminalState --ignore-not-found)"; else ended=""; fi
if [[ -n $ended ]]; then run kubectl delete jobset "$NAME" --wait; fi
run kubectl apply -f "$manifest"
newest=(-l "jobset.sigs.k8s.io/jobset-name=$NAME,batch.kubernetes.io/job-completion-index=0")
ended="" missed=0
while [[ -z $ended ]]; do # a log ends with its pod, or breaks off; the next one follows
  run kubectl logs "${newest[@]}" --follow --pod-running-timeout=1h --tail=-1 || true
  if [[ -n $DRY_RUN ]]; then exit 0; fi
  sleep "$POLL_SECONDS"
  if ended="$(ask terminalState)"; then missed=0; continue; fi
  ((++missed <= 5)) || die "kubectl finds no more out about $NAME, see above; unless it was deleted, the job goes on."
done
echo "$NAME: $ended after $(ask restarts) restarts." && [[ $ended == Completed ]]
