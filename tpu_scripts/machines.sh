#!/usr/bin/env bash
# Defaults, the row of the topology and the functions of --on; sourced by create.sh and its siblings.
set -euo pipefail
# shellcheck source=settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
export ON="${ON:-queued}" NAME="${NAME:-codegen2}" TOPOLOGY="${TOPOLOGY:-v5p:4x4x4}" CAPACITY="${CAPACITY:-spot}"
export PROJECT="${PROJECT:-}" ZONE="${ZONE:-}" HOST="${HOST:-}" RESERVATION="${RESERVATION:-}" STORAGE="${STORAGE:-}"
export SOURCE="${SOURCE:-$here/..}" RESULTS="${RESULTS:-results}" CHECKPOINTS="${CHECKPOINTS:-0}"
export POLL_SECONDS="${POLL_SECONDS:-30}" DISTRIBUTED=on MOUNT=/mnt/codegen2_jax
[[ $NAME =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] || die "NAME=$NAME must be 1 to 40 of a-z, 0-9 and -, letter first."
[[ -z $STORAGE || $STORAGE =~ ^gs://[^/]+$ || $STORAGE =~ ^[^:/]+:/([^/]|$) ]] ||
  die "STORAGE=$STORAGE must be gs://BUCKET (the bucket's top) or SERVER:/EXPORT."
[[ $CAPACITY =~ ^(spot|on-demand|reserved)$ ]] || die "CAPACITY=$CAPACITY must be spot, on-demand or reserved."
row="$(awk -v name="$TOPOLOGY" '$1 == name' "$here/topologies.txt")"
known="$(awk '/^v/ {printf "%s ", $1}' "$here/topologies.txt")"
[[ -n $row ]] || die "TOPOLOGY=$TOPOLOGY is none of ${known}(topologies.txt)."
read -r _ accelerator_type runtime_version machines machine_type gke_accelerator <<< "$row"
[[ $ON =~ ^(queued|group|host|gke)$ ]] || die "ON=$ON must be queued, group, host or gke."
if [[ $ON == host ]]; then
  need HOST
  export EXTRAS="${EXTRAS:-cuda,seqio}" MODEL_DIR="${MODEL_DIR:-runs/$NAME}" DISTRIBUTED=off
  export CACHE="${CACHE:-.cache/codegen2_jax}"
elif [[ $ON != gke ]]; then
  need PROJECT ZONE
fi
export EXTRAS="${EXTRAS:-tpu,seqio}" MODEL_DIR="${MODEL_DIR:-$MOUNT/runs/$NAME}" CACHE="${CACHE:-$MOUNT/cache}"
# shellcheck source=/dev/null
source "$here/on/$ON.sh"
