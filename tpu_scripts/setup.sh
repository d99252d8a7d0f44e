#!/usr/bin/env bash
# Puts this repository and a virtual environment on every machine and mounts the storage; nothing is done twice.
#   tpu_scripts/setup.sh [--on=queued|group|host] [--source=CHECKOUT] [--dry-run]
set -euo pipefail
# shellcheck source=machines.sh
source "$(dirname "$0")/machines.sh"

work="$(mktemp -d)"
trap 'rm -rf -- "$work"' EXIT
git -C "$SOURCE" rev-parse --git-dir > "$work/git" 2> "$work/error" ||
  die "SOURCE=$SOURCE is no git checkout: $(tail -n 1 "$work/error")"
# The commit together with what is edited and not committed yet; files that git does not know stay here.
commit="" identity=(-c user.name=launch -c user.email=launch@localhost)
if [[ -z $DRY_RUN ]]; then commit="$(git -C "$SOURCE" "${identity[@]}" stash create)"; fi
run git -C "$SOURCE" archive --format=tar.gz --output="$work/codegen2_jax.tar.gz" "${commit:-HEAD}"
send "$work/codegen2_jax.tar.gz" "$here/host_setup.sh" "$here/host_train.sh"
remote all "bash host_setup.sh ${EXTRAS@Q} ${STORAGE@Q} $MOUNT"
