#!/usr/bin/env bash
# Submits itself to Slurm and trains there, one process per GPU; preempted or out of time, it is queued again, resumes.
# A second call says where the job is. Partition and account: Slurm's own SBATCH_PARTITION and SBATCH_ACCOUNT.
#   tpu_scripts/slurm_run.sh [--name=codegen2] [--nodes=1] [--gpus=8] [--shell_setup='. venv/bin/activate'] -- ARGUMENTS

#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
# The last: SIGTERM to all processes 300 s before the time limit; they save their state and exit with 75.
set -euo pipefail
trains=1 takes="NAME MODEL_DIR CACHE NODES GPUS SHELL_SETUP" submitted="${TPU_SCRIPTS:-}"
# shellcheck source=settings.sh
source "${TPU_SCRIPTS:-$(dirname "$0")}/settings.sh"
export NODES="${NODES:-1}" GPUS="${GPUS:-8}" SHELL_SETUP="${SHELL_SETUP:-}" TPU_SCRIPTS="$here"
export MODEL_DIR="${MODEL_DIR:-runs/$NAME}" # on the file system that all nodes share
for number in "$NODES" "$GPUS"; do
  [[ $number =~ ^[1-9][0-9]*$ ]] || die "NODES=$NODES and GPUS=$GPUS must be whole numbers above 0."
done
((${#TRAIN[@]})) || die "nothing to train: what training takes follows a lone --, as in -- --gin_file=pp_tf.gin"

if [[ -z $submitted ]]; then # in a shell that Slurm gave too
  queued=""
  if [[ -z $DRY_RUN ]]; then queued="$(squeue --me --noheader --name="$NAME" --format='%i %T')"; fi
  if [[ -n $queued ]]; then echo "$NAME is there already: job $queued." && exit 0; fi
  run mkdir -p "$MODEL_DIR"
  run sbatch --export=ALL --job-name="$NAME" --nodes="$NODES" --ntasks-per-node="$GPUS" --gpus-per-node="$GPUS" \
    --output="$MODEL_DIR/slurm-%j.log" "$here/slurm_run.sh" -- "${TRAIN[@]}"
  echo "The log: $MODEL_DIR/slurm-JOB.log; to stop: scancel --name=$NAME." && exit 0
fi
set +u && eval "$SHELL_SETUP" # modules and conda read variables that are not set
set -eu
if [[ -n ${CACHE:-} ]]; then export CODEGEN2_JAX_CACHE="$CACHE"; fi
several=on && if ((NODES * GPUS == 1)); then several=off; fi
code=0 # a process that ends early leaves the others 300 s to save
run srun --kill-on-bad-exit=0 --wait=300 python -u -m codegen2_jax.train --distributed="$several" \
  --model_dir="$MODEL_DIR" "${TRAIN[@]}" || code=$?
if [[ $code == 75 ]]; then run scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
