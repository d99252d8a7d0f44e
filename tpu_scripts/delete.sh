#!/usr/bin/env bash
# Deletes the machines. The storage, and with it the run, stays.
#   tpu_scripts/delete.sh [--on=queued|group] --project=P --zone=Z [--dry-run]
set -euo pipefail
# shellcheck source=machines.sh
source "$(dirname "$0")/machines.sh"

now="$(state ACTIVE)"
if [[ $now == DELETING ]]; then
  echo "$NAME is being deleted already."
elif [[ -z $now && $ON != group ]]; then
  echo "$NAME is not there: nothing to delete."
else
  remove
fi
