#!/usr/bin/env bash
# Asks for the machines and waits until all of them are there.
# What is there stays as it is; what was preempted or has failed is deleted and asked for again.
#   tpu_scripts/create.sh [--on=queued|group] --project=P --zone=Z [--topology=v5p:4x4x4] [--dry-run]
set -euo pipefail
# shellcheck source=machines.sh
source "$(dirname "$0")/machines.sh"

asked=0 awaited=0 missed=5
while true; do # the first look must succeed; in a wait of days one or another may not
  now="$(state "")" || { ((++missed <= 5)) || exit 1; sleep "$POLL_SECONDS"; continue; }
  missed=0
  case "$now" in
    ACTIVE) echo "$NAME is there." && break ;;
    "") ((!awaited)) || die "$NAME was deleted while it was awaited; this command again asks for it again."
      if ((asked)); then sleep "$POLL_SECONDS"; else submit; asked=1; fi ;; # a new one may be listed late
    FAILED) ((!asked)) || die "$NAME has failed: look at it, then choose another zone, topology or capacity."; remove ;;
    SUSPENDED) echo "$NAME was preempted: asking for it again."; remove; asked=0 awaited=0 ;;
    *) echo "$NAME: $now"; awaited=$asked; sleep "$POLL_SECONDS" ;;
  esac
  if [[ -n $DRY_RUN ]]; then break; fi
done
