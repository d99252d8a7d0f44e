#!/usr/bin/env bash
# The machines of an instance group: what there is, and removal; sourced by on/group.sh.
set -euo pipefail
where=(--project="$PROJECT" --zone="$ZONE") region="${ZONE%-*}"
part="$NAME-$ZONE" # template and policy, which a group of the same name in another zone must not share
policy=(compute resource-policies) group=(compute instance-groups managed) template=(compute instance-templates)
log_on=all

there() { # $1: a name; $2: a flag that says where, or nothing; the rest: its kind. The name, if it is there
  if [[ -n $DRY_RUN ]]; then return; fi
  gcloud "${@:3}" list --project="$PROJECT" ${2:+"$2"} --filter="name=$1" --format='value(name)'
}
members() { # one field of every machine
  if [[ -n $DRY_RUN ]]; then echo "$NAME-0000"; return; fi
  gcloud "${group[@]}" list-instances "$NAME" "${where[@]}" --format="value($1)"
}
remove_one() { # as there
  local found
  found="$(there "$1" "${2/=/s=}" "${@:3}")" # --zones=, --regions=
  if [[ -n $found$DRY_RUN ]]; then run gcloud "${@:3}" delete "$1" --project="$PROJECT" ${2:+"$2"} --quiet; fi
}
remove_parts() { # what only the group uses
  remove_one "$part" "" "${template[@]}"
  remove_one "$part" "--region=$region" "${policy[@]}"
}
remove() {
  remove_one "$NAME" "--zone=$ZONE" "${group[@]}"
  remove_parts
}
