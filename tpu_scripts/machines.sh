#!/usr/bin/env bash
# Defaults, the row of the topology and the functions of --on; sourced by create.sh and its siblings.
set -euo pipefail
takes="${takes:-ON NAME PROJECT ZONE TOPOLOGY CAPACITY RESERVATION HOST STORAGE MODEL_DIR CACHE SOURCE EXTRAS
  RESULTS CHECKPOINTS POLL_SECONDS }" && takes="${takes//[[:space:]]/ }"
# shellcheck source=settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
export ON="${ON:-queued}" TOPOLOGY="${TOPOLOGY:-v5p:4x4x4}" CAPACITY="${CAPACITY:-spot}"
export PROJECT="${PROJECT:-}" ZONE="${ZONE:-}" HOST="${HOST:-}" RESERVATION="${RESERVATION:-}" STORAGE="${STORAGE:-}"
export SOURCE="${SOURCE:-$here/..}" RESULTS="${RESULTS:-results}" CHECKPOINTS="${CHECKPOINTS:-0}"
export POLL_SECONDS="${POLL_SECONDS:-30}" DISTRIBUTED=on MOUNT=/mnt/codegen2_jax
[[ -z $STORAGE || $STORAGE =~ ^gs://[^/]+$ || $STORAGE =~ ^[^:/]+:/([^/]|$) ]] ||
  die "STORAGE=$STORAGE must be gs://BUCKET (the bucket's top) or SERVER:/EXPORT."
[[ $CAPACITY =~ ^(spot|on-demand|reserved)$ ]] || die "CAPACITY=$CAPACITY must be spot, on-demand or reserved."
[[ $CHECKPOINTS =~ ^[01]$ ]] || die "CHECKPOINTS=$CHECKPOINTS must be 1, to fetch them too, or 0."
[[ $POLL_SECONDS =~ ^[0-9]+$ ]] || die "POLL_SECONDS=$POLL_SECONDS must be a whole number of seconds; 30 is usual."
row="$(awk -v name="$TOPOLOGY" '$1 == name' "$here/topologies.txt")"
known="$(awk '/^v/ {printf "%s ", $1}' "$here/topologies.txt")"
[[ -n $row ]] || die "TOPOLOGY=$TOPOLOGY is none of ${known}(topologies.txt)."
read -r _ accelerator_type runtime_version machines machine_type gke_accelerator <<< "$row"
[[ $ON =~ ^(queued|group|host|gke)$ ]] || die "ON=$ON must be queued, group, host or gke."
[[ -z $RESERVATION || $ON-$CAPACITY == group-reserved ]] ||
  die "RESERVATION=$RESERVATION is only named with --on=group --capacity=reserved."
if [[ $ON == host ]]; then
  need HOST
  export EXTRAS="${EXTRAS:-cuda,seqio}" MODEL_DIR="${MODEL_DIR:-runs/$NAME}" DISTRIBUTED=off
  export CACHE="${CACHE:-.cache/codegen2_jax}"
elif [[ $ON != gke ]]; then
  need PROJECT ZONE
fi
export EXTRAS="${EXTRAS:-tpu,seqio}" MODEL_DIR="${MODEL_DIR:-$MOUNT/runs/$NAME}" CACHE="${CACHE:-$MOUNT/cache}"
[[ $EXTRAS =~ ^[A-Za-z0-9_.,-]+$ ]] || die "EXTRAS=$EXTRAS must be extras of setup.cfg, as in tpu,seqio."
# shellcheck source=/dev/null
source "$here/on/$ON.sh"
