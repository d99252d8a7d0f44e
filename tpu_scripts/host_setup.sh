#!/usr/bin/env bash
# Runs on every machine, sent there by setup.sh: mounts the storage, unpacks the source, installs it into ~/venv.
# No Docker: uv brings its own Python 3.11. Nothing is done twice for the same source.
#   bash host_setup.sh [--dry-run] EXTRAS STORAGE MOUNT
set -euo pipefail
case "${1:-}" in
  --help | -h | "") sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit 0 ;;
  --dry-run) shift && run() { echo "${@@Q}"; } ;;
  *) run() { "$@"; } ;;
esac
(($# == 3)) || { echo "error: $# words given; 3 are wanted: EXTRAS STORAGE MOUNT, see --help." >&2; exit 2; }
extras="$1" storage="$2" mount="$3" here="$(cd "$(dirname "$0")" && pwd)"; cd "$HOME"
package() { # a fresh machine upgrades itself first and holds apt's locks meanwhile
  for _ in {1..60}; do if run sudo apt-get update; then break; else sleep 10; fi; done
  run sudo apt-get -o DPkg::Lock::Timeout=600 install -y "$1"
}
add_gcsfuse() {
  local keys=/usr/share/keyrings/cloud.google.asc url=https://packages.cloud.google.com
  run sudo curl -fsS -o "$keys" "$url/apt/doc/apt-key.gpg"
  run sudo sh -c "echo 'deb [signed-by=$keys] $url/apt gcsfuse-$(lsb_release -cs) main' \
    > /etc/apt/sources.list.d/gcsfuse.list" && package gcsfuse
}
if [[ -n $storage ]] && ! mountpoint -q "$mount"; then
  run sudo install -d -o "$(id -un)" "$mount"
  case "$storage" in
    gs://*) command -v gcsfuse > /dev/null || add_gcsfuse; run gcsfuse --implicit-dirs "${storage#gs://}" "$mount" ;;
    *) command -v mount.nfs > /dev/null || package nfs-common; run sudo mount -t nfs "$storage" "$mount" ;;
  esac
fi
if bash "$here/host_train.sh" running; then echo "$(hostname): training runs: its installation stays." && exit 0; fi
stamp="$(sha256sum < codegen2_jax.tar.gz) $extras"
if [[ $stamp == "$(cat venv/stamp 2> /dev/null)" ]]; then echo "$(hostname): this source is installed." && exit 0; fi
command -v "$HOME/.local/bin/uv" > /dev/null || run sh -c 'curl -LsSf https://astral.sh/uv/install.sh | sh'
[[ ! -e codegen2_jax/.git ]] || { echo "error: ~/codegen2_jax is a checkout of your own: move it away." >&2; exit 2; }
run rm -rf codegen2_jax.new; run mkdir codegen2_jax.new; run tar -xzf codegen2_jax.tar.gz -C codegen2_jax.new
# Nothing that this source no longer has stays importable; until the last line, no source counts as installed.
run rm -rf venv/stamp codegen2_jax; run mv codegen2_jax.new codegen2_jax
[[ -x venv/bin/python ]] || run .local/bin/uv venv --python 3.11 venv
run .local/bin/uv pip install --python venv/bin/python -c codegen2_jax/constraints.txt -e "codegen2_jax[$extras]"
run sh -c "echo '$stamp' > venv/stamp"
