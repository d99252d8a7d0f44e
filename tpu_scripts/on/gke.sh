#!/usr/bin/env bash
# The JobSet that gke_run.sh makes on a GKE cluster, for fetch.sh and delete.sh; sourced by machines.sh.
set -euo pipefail
log_on=0

state() { # nothing, or the name that kubectl gives it
  if [[ -n $DRY_RUN ]]; then echo "$1"; return; fi
  kubectl get jobset "$NAME" --ignore-not-found --output=name
}
remove() { run kubectl delete jobset "$NAME" --wait; }
submit() { die "ON=gke: xpk cluster create makes a cluster, and gke_run.sh trains on it; there is nothing to set up."; }
remote() { submit; }
send() { submit; }
receive() { submit; }
