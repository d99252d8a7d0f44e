#!/usr/bin/env bash
# Copies the run directory to RESULTS/NAME on this machine, without the checkpoints unless CHECKPOINTS=1.
# From gs:// storage no machine is needed; a second call fetches what is new.
#   tpu_scripts/fetch.sh [--on=queued|group|host|gke] [--storage=gs://BUCKET] [--checkpoints=1] [--dry-run]
set -euo pipefail
# shellcheck source=machines.sh
source "$(dirname "$0")/machines.sh"

if [[ $ON == gke ]]; then need STORAGE; fi
target="$RESULTS/$NAME"
run mkdir -p "$target"
if [[ $ON != host && $STORAGE == gs://* ]]; then
  [[ $MODEL_DIR == "$MOUNT/"* ]] || die "MODEL_DIR=$MODEL_DIR is not below $MOUNT, so it is not in $STORAGE."
  left_out=(--exclude='checkpoints/.*')
  if [[ $CHECKPOINTS == 1 ]]; then left_out=(); fi
  run gcloud storage rsync --recursive "${left_out[@]}" "$STORAGE/${MODEL_DIR#"$MOUNT/"}" "$target"
else
  excluded="--exclude=./checkpoints "
  if [[ $CHECKPOINTS == 1 ]]; then excluded=""; fi
  # 1: a file changed or went while tar read it, as they do while the run writes; 2 is a failure
  remote 0 "tar -C ${MODEL_DIR@Q} ${excluded}-czf $NAME.tar.gz . || [ \$? = 1 ]"
  receive "$NAME.tar.gz" "$target/.fetched.tar.gz"
  run tar -C "$target" -xzf "$target/.fetched.tar.gz"
  run rm "$target/.fetched.tar.gz"
fi
echo "Results are in $target; python -m codegen2_jax.report draws finished runs."
