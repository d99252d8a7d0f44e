#!/usr/bin/env bash
# The JobSet that gke_run.sh makes on a GKE cluster: its manifest, its end; sourced by machines.sh.
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

text() { # as YAML in double quotes, of which Kubernetes makes what it was ($$ is its $)
  local word="${1//\\/\\\\}"
  word="${word//\"/\\\"}" && word="${word//$'\n'/\\n}"
  echo "\"${word//\$/\$\$}\""
}
filled() { # gke_jobset.yaml with its lines KEY: anything # WORD as KEY: the value of WORD
  local quoted="" word line
  for word in "--model_dir=$MODEL_DIR" "${TRAIN[@]}"; do quoted+=", $(text "$word")"; done
  local -A value=([NAME]="\"$NAME\"" [IMAGE]="\"$IMAGE\"" [SERVICE_ACCOUNT]="\"${SERVICE_ACCOUNT:-default}\""
    [MACHINES]="$machines" [GKE_ACCELERATOR]="$gke_accelerator" [SHAPE]="${TOPOLOGY#*:}"
    [BUCKET]="\"${STORAGE#gs://}\"" [CACHE]="$(text "$CACHE")" [ARGUMENTS]="[${quoted#, }]")
  while IFS= read -r line; do
    word="${line##* # }"
    if [[ $line == *": "*" # "* && -n ${value[$word]:-} ]]; then line="${line%%: *}: ${value[$word]}"; fi
    printf '%s\n' "$line"
  done < "$here/gke_jobset.yaml"
}
