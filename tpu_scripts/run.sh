#!/usr/bin/env bash
# Trains on the machines until training ends; makes and sets them up first, and again whenever they were preempted.
# Stop it and start it as you like: the run goes on without it, and a second start follows the run that is there.
#   tpu_scripts/run.sh --storage=gs://BUCKET [...] -- --gin_file=FILE.gin [what else train takes]
# The exit code is that of training; 75 (state saved, start again) and lost machines start it again from the last save.
# Machines that somebody deletes meanwhile (delete.sh) are not asked for again.
set -euo pipefail
trains=1
# shellcheck source=machines.sh
source "$(dirname "$0")/machines.sh"
((${#TRAIN[@]})) || die "nothing to train: what training takes follows a lone --, as in -- --gin_file=pp_tf.gin"
[[ $ON == host || $MODEL_DIR != "$MOUNT/"* ]] || need STORAGE # the machines' own disks go with them

arguments=("--distributed=$DISTRIBUTED" "--model_dir=$MODEL_DIR" "${TRAIN[@]}")
unreachable() { echo "error: $NAME cannot be reached; the run itself goes on." >&2 && exit 255; }
lost=0
while true; do
  "$here/create.sh"
  code=0 what=setup
  { "$here/setup.sh" &&
    remote all "CODEGEN2_JAX_CACHE=${CACHE@Q} bash host_train.sh start ${arguments[*]@Q}" && what=training lost=0 &&
    remote "$log_on" "bash host_train.sh follow" && remote all "bash host_train.sh wait"; } || code=$?
  if [[ $code == 0 || -n $DRY_RUN ]]; then exit "$code"; fi
  until now="$(state ACTIVE)"; do ((++lost <= 5)) || unreachable; sleep "$POLL_SECONDS"; done
  [[ $now != @(|DELETING) ]] || die "$NAME was deleted while it trained; this command again goes on from the last save."
  if [[ $code == 255 && $now == ACTIVE ]]; then # ssh's own: the way to the machines, not the run
    ((++lost <= 5)) || unreachable
  elif [[ $code != 75 && $now == ACTIVE ]]; then
    echo "error: $what ended with exit code $code." >&2 && exit "$code"
  else lost=0; fi
  echo "$NAME: exit code $code, machines $now; starting again, the run resumes from its last save."
  sleep "$POLL_SECONDS"
done
