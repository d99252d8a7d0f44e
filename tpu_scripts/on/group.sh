#!/usr/bin/env bash
# A TPU slice as a managed instance group of Compute Engine (v5p, v6e); sourced by machines.sh.
set -euo pipefail
[[ $machine_type != - ]] || die "TOPOLOGY=$TOPOLOGY: instance groups take v5p and v6e; use --on=queued."
if [[ $CAPACITY == reserved ]]; then need RESERVATION; fi
# shellcheck source=group_machines.sh
source "$here/on/group_machines.sh"
# shellcheck source=group_files.sh
source "$here/on/group_files.sh"

state() { # nothing, WAITING, ACTIVE, DELETING or, when a machine was lost, SUSPENDED; $1 is supposed under --dry-run
  local found statuses
  if [[ -n $DRY_RUN ]]; then echo "$1"; return; fi
  found="$(there "$NAME" "--zones=$ZONE" "${group[@]}")" || return
  if [[ -z $found ]]; then return; fi
  statuses="$(members instanceStatus,currentAction)" || return
  if [[ $statuses == *DELETING* ]]; then echo DELETING
  elif [[ $statuses =~ STOP|TERMINATED|SUSPEND ]]; then echo SUSPENDED
  elif (($(grep -c '^RUNNING' <<< "$statuses") == machines)); then echo ACTIVE; else echo WAITING; fi
}
submit() { # the policy joins the machines to one slice; a repair of one machine would break it, so there is none
  local tier=(--provisioning-model=STANDARD)
  case "$CAPACITY" in
    spot) tier=(--provisioning-model=SPOT --instance-termination-action=STOP) ;;
    reserved) tier=(--provisioning-model=RESERVATION_BOUND --instance-termination-action=DELETE
      --reservation-affinity=specific --reservation="$RESERVATION") ;;
  esac
  [[ -n $DRY_RUN ]] || remove_parts # those of a try before may be of another topology or capacity
  run gcloud "${policy[@]}" create workload-policy "$part" --project="$PROJECT" \
    --region="$region" --type=HIGH_THROUGHPUT --accelerator-topology="${TOPOLOGY#*:}"
  run gcloud "${template[@]}" create "$part" --project="$PROJECT" --machine-type="$machine_type" \
    "${tier[@]}" --maintenance-policy=TERMINATE --boot-disk-size=200GB --scopes=cloud-platform \
    --image-family=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e --image-project=ubuntu-os-accelerator-images
  run gcloud "${group[@]}" create "$NAME" "${where[@]}" --size="$machines" --template="$part" \
    --default-action-on-vm-failure=do-nothing \
    --workload-policy="projects/$PROJECT/regions/$region/resourcePolicies/$part"
}
