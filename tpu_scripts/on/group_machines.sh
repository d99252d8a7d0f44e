#!/usr/bin/env bash
# The machines of an instance group: removal, commands and files; sourced by on/group.sh.
set -euo pipefail
where=(--project="$PROJECT" --zone="$ZONE") region="${ZONE%-*}"
policy=(compute resource-policies) group=(compute instance-groups managed) template=(compute instance-templates)
log_on=all

there() { # the name, if there is something of this kind and name
  if [[ -n $DRY_RUN ]]; then return; fi
  gcloud "$@" list --project="$PROJECT" --filter="name=$NAME" --format='value(name)'
}
members() { # one field of every machine
  if [[ -n $DRY_RUN ]]; then echo "$NAME-0000"; return; fi
  gcloud "${group[@]}" list-instances "$NAME" "${where[@]}" --format="value($1)"
}
remove_one() { # $1: the flag that says where it is; the rest: its kind
  local found
  found="$(there "${@:2}")"
  if [[ -n $found$DRY_RUN ]]; then run gcloud "${@:2}" delete "$NAME" --project="$PROJECT" ${1:+"$1"} --quiet; fi
}
remove() { # the group, then what only it used
  remove_one "--zone=$ZONE" "${group[@]}"
  remove_one "" "${template[@]}"
  remove_one "--region=$region" "${policy[@]}"
}
remote() { # $1: all or a number; $2: the command. All at once; of several exit codes 75 wins
  local names name pids=() pid code=0 one
  names="$(members 'instance.basename()')"
  if [[ $1 != all ]]; then names="$(sed -n "$(($1 + 1))p" <<< "$names")"; fi
  for name in $names; do run gcloud compute ssh "$name" "${where[@]}" --command="$2" < /dev/null & pids+=($!); done
  for pid in "${pids[@]}"; do one=0; wait "$pid" || one=$?; if ((one && code != 75)); then code=$one; fi; done
  return "$code"
}
