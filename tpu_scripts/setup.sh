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
# The commit together with what is edited and not committed yet; files that git does not know stay here. That tree is
# sent as a commit of its own, by nobody and of a fixed day: machines know the same source by the same bytes.
sent=HEAD day=2000-01-01T00:00:00Z
if [[ -z $DRY_RUN ]]; then
  export GIT_AUTHOR_NAME=launch GIT_AUTHOR_EMAIL=launch@localhost GIT_AUTHOR_DATE="$day"
  export GIT_COMMITTER_NAME=launch GIT_COMMITTER_EMAIL=launch@localhost GIT_COMMITTER_DATE="$day"
  edited="$(git -C "$SOURCE" stash create)"
  sent="$(git -C "$SOURCE" commit-tree -m source "${edited:-HEAD}^{tree}")"
fi
run git -C "$SOURCE" archive --format=tar.gz --output="$work/codegen2_jax.tar.gz" "$sent"
send "$work/codegen2_jax.tar.gz" "$here/host_setup.sh" "$here/host_train.sh"
remote all "bash host_setup.sh ${EXTRAS@Q} ${STORAGE@Q} $MOUNT"
