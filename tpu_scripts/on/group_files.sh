#!/usr/bin/env bash
# Files to and from the machines of an instance group; sourced by on/group.sh.
set -euo pipefail
send() { # files to the home directory of every machine
  local names name
  names="$(members 'instance.basename()')"
  for name in $names; do run gcloud compute scp "$@" "$name:" "${where[@]}"; done
}
receive() { # a file from the machine that remote calls 0
  local names
  names="$(members 'instance.basename()')"
  run gcloud compute scp "${names%%$'\n'*}:$1" "$2" "${where[@]}"
}
