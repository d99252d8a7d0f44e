#!/usr/bin/env bash
# Launches sky.yaml as a managed job of SkyPilot, unless a job of this name is under way; SkyPilot recovers it.
#   tpu_scripts/sky_run.sh --storage=gs://BUCKET [--name=codegen2] [--extras=tpu,seqio] -- --gin_file=FILE.gin [...]
# Then: sky jobs logs --name NAME; sky jobs cancel --name NAME; fetch.sh --on=gke --storage=... takes the results.
set -euo pipefail
trains=1 takes="NAME STORAGE EXTRAS"
# shellcheck source=settings.sh
source "$(dirname "$0")/settings.sh"
need STORAGE
[[ $STORAGE =~ ^gs://[^/]+$ ]] || die "STORAGE=$STORAGE: SkyPilot mounts a bucket, gs://BUCKET."
((${#TRAIN[@]})) || die "nothing to train: what training takes follows a lone --, as in -- --gin_file=pp_tf.gin"

queue=""
if [[ -z $DRY_RUN ]]; then queue="$(sky jobs queue --skip-finished)"; fi
if grep -qxF -- "$NAME" <<< "${queue//[[:space:]]/$'\n'}"; then # a word of the table
  echo "$NAME is under way: sky jobs logs --name $NAME follows it." && exit 0
fi
cd "$here/.." # the working directory is what SkyPilot uploads
run sky jobs launch --yes --detach-run --name "$NAME" --env NAME="$NAME" --env BUCKET="${STORAGE#gs://}" \
  --env EXTRAS="${EXTRAS:-tpu,seqio}" --env ARGUMENTS="${TRAIN[*]@Q}" tpu_scripts/sky.yaml
