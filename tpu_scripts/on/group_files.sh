#!/usr/bin/env bash
# Commands and files to the machines of an instance group, and files from them; sourced by on/group.sh.
set -euo pipefail
remote() { # $1: all or a number; $2: the command. All at once; of several exit codes 75 wins, and ssh's own loses
  local names name pids=() pid code=0 one
  names="$(members 'instance.basename()')" && [[ -n $names ]] || return 255
  if [[ $1 != all ]]; then names="$(sed -n "$(($1 + 1))p" <<< "$names")"; fi
  for name in $names; do
    run gcloud compute ssh "$name" "${where[@]}" --ssh-flag='-o ServerAliveInterval=30' --command="$2" < /dev/null &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do
    one=0; wait "$pid" || one=$?
    if ((one && code != 75 && (one != 255 || !code))); then code=$one; fi
  done
  return "$code"
}
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
