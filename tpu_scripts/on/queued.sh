#!/usr/bin/env bash
# A TPU slice as a queued resource of the Cloud TPU API (v4 to v6e); sourced by machines.sh.
set -euo pipefail
where=(--project="$PROJECT" --zone="$ZONE")
alive='-o ServerAliveInterval=30' # so that a machine that is gone does not leave ssh waiting for ever
log_on=0 # process 0, which writes the log, runs on worker 0

state() { # nothing, WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE, SUSPENDED, FAILED ...; $1 is supposed under --dry-run
  local found machine
  if [[ -n $DRY_RUN ]]; then echo "$1"; return; fi
  found="$(gcloud compute tpus queued-resources list "${where[@]}" --filter="name~/queuedResources/$NAME\$" \
    --format='value(state.state)')" || return
  if [[ $found == ACTIVE ]]; then # it stays so for a while after its TPU VM was taken, and while that is repaired
    machine="$(gcloud compute tpus tpu-vm list "${where[@]}" --filter="name~/nodes/$NAME\$" --format='value(state)')" \
      || return
    if [[ $machine == @(PREEMPTED|TERMINATED) ]]; then found=SUSPENDED
    elif [[ $machine != READY ]]; then found="ACTIVE, its TPU VM ${machine:-not listed}"; fi
  fi
  echo "$found"
}
submit() {
  local tier=()
  case "$CAPACITY" in spot) tier=(--spot) ;; reserved) tier=(--reserved) ;; esac
  run gcloud compute tpus queued-resources create "$NAME" "${where[@]}" --node-id="$NAME" \
    --accelerator-type="$accelerator_type" --runtime-version="$runtime_version" "${tier[@]}"
}
remove() { # --force: together with its TPU VMs
  run gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet
}
remote() { # $1: all, or a worker's number; $2: the command
  run gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker="$1" --ssh-flag="$alive" --command="$2"
}
send() { # files to the home directory of every machine
  run gcloud compute tpus tpu-vm scp "$@" "$NAME:" "${where[@]}" --worker=all
}
receive() { # a file from worker 0
  run gcloud compute tpus tpu-vm scp "$NAME:$1" "$2" "${where[@]}" --worker=0
}
