#!/usr/bin/env bash
# Settings, each a flag (--zone=Z) or an environment variable (ZONE); sourced by the scripts, does nothing by itself:
#   ON, NAME     queued, group, host or gke; what everything that is made is called (default queued, codegen2)
#   PROJECT, ZONE, TOPOLOGY   of Google Cloud; a topology is a row of topologies.txt (default v5p:4x4x4)
#   CAPACITY, RESERVATION   spot, on-demand or reserved (default spot), on a group with the reservation's name
#   HOST         user@host for ssh, with --on=host
#   STORAGE      what outlives the machines and all of them mount: gs://BUCKET, or SERVER:/EXPORT of NFS
#   MODEL_DIR, CACHE   on the machines: runs/NAME and cache in that storage, or on a host in the home
#   SOURCE       a checkout of this repository (default: the one with these scripts); uncommitted edits go along
#   EXTRAS, RESULTS, CHECKPOINTS   pip extras (tpu,seqio); where results go (results); 1 fetches checkpoints too
#   IMAGE, SERVICE_ACCOUNT      of GKE pods
#   NODES, GPUS, SHELL_SETUP    of a Slurm job: nodes, GPUS of each (1, 8), and what to run before training
#   POLL_SECONDS   between two looks at something that is awaited (default 30)
set -euo pipefail
shopt -s inherit_errexit # a failing $(...) fails too
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
flags=" $(sed -n '/^#   /{s/^#   \([A-Z_, ]*\).*/\1/;s/,/ /g;p}' "$here/settings.sh" | tr '\n' ' ') "
die() { echo "error: $*" >&2; exit 2; }
usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" "$here/settings.sh"; exit 0; }
run() { # runs a command, or prints it under --dry-run
  if [[ -z $DRY_RUN ]]; then "$@"; return; fi
  local word plain='^[][A-Za-z0-9_./:=,@%+~-]+$'
  for word; do [[ $word =~ $plain ]] || word="${word@Q}"; printf '%s ' "$word"; done && echo
}
need() { for name; do [[ -n ${!name:-} ]] || die "$name is not set: export it or give --${name,,}=VALUE."; done; }
export NAME="${NAME:-codegen2}" DRY_RUN="${DRY_RUN:-}" && TRAIN=()
while (($#)); do
  name="${1%%=*}" && name="${name#--}" && name="${name^^}" && name="${name//-/_}"
  case "$1" in
    --help | -h) usage ;;
    --dry-run) export DRY_RUN=1 ;;
    --) [[ -n ${trains:-} ]] || die "${0##*/} trains nothing: leave out the lone -- and what follows."
      TRAIN=("${@:2}") && break ;;
    --*=*) [[ -n $name && $flags == *" $name "* ]] || die "unknown flag ${1%%=*}; see --help."
      [[ " $takes " == *" $name "* ]] || die "${0##*/} has no use for ${1%%=*}: leave it out."
      export "$name=${1#*=}" ;;
    *) die "unexpected argument $1; what training takes follows a lone --, see --help." ;;
  esac && shift
done
[[ $NAME =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] || die "NAME=$NAME must be 1 to 40 of a-z, 0-9 and -, letter first."
