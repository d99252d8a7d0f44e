#!/usr/bin/env bash
# One host that is there already, with GPUs or without, reached by ssh; sourced by machines.sh.
set -euo pipefail
log_on=all

state() { echo ACTIVE; }
submit() { :; }
remove() { echo "$HOST is not ours to delete; its files are ~/codegen2_jax, ~/venv and ~/runs."; }
remote() { run ssh -o ServerAliveInterval=30 "$HOST" "$2"; }
send() { run rsync --archive --compress "$@" "$HOST:"; }
receive() { run rsync --archive --compress "$HOST:$1" "$2"; }
