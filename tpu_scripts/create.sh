#!/usr/bin/env bash
# Asks for the machines and waits until all of them are there.
# What is there stays as it is; what was preempted or has failed is deleted and asked for again.
#   tpu_scripts/create.sh [--on=queued|group] --project=P --zone=Z [--topology=v5p:4x4x4] [--dry-run]
set -euo pipefail
# shellcheck source=machines.sh
source "$(dirname "$0")/machines.sh"

asked=0
while true; do
  now="$(state "")"
  case "$now" in
    ACTIVE) echo "$NAME is there." && break ;;
    "") if ((asked)); then sleep "$POLL_SECONDS"; else submit; asked=1; fi ;; # a new one may be listed late
    FAILED) ((!asked)) || die "$NAME has failed: look at it, then choose another zone, topology or capacity."; remove ;;
    SUSPENDED) echo "$NAME was preempted: asking for it again."; remove; asked=0 ;;
    *) echo "$NAME: $now" && sleep "$POLL_SECONDS" ;;
  esac
  if [[ -n $DRY_RUN ]]; then break; fi
done
