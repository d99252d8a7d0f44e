#!/usr/bin/env bash
# Runs on every machine, sent there by setup.sh: training that outlives the connection that started it.
#   bash host_train.sh start ARGUMENTS    starts it, unless it runs
#   bash host_train.sh follow             shows its log until it ends
#   bash host_train.sh wait               waits until it ends and exits with its code; 75 = state saved, start again
#   bash host_train.sh running            exits with 0 if it runs, else with 1
#   bash host_train.sh --dry-run start ARGUMENTS    prints the command
set -euo pipefail
home="$HOME/.codegen2_jax_run" dry_run=""
if [[ ${1:-} == --dry-run ]]; then dry_run=1 && shift; fi
# When a process began, in ticks since the machine did: later, or after a reboot, its number may be a stranger's.
birth() { sed 's/.*) //' "/proc/$1/stat" 2> /dev/null | cut -d ' ' -f 20; }
running() { [[ -f $home/pid ]] && read -r pid born < "$home/pid" && [[ $born && $born == "$(birth "$pid")" ]]; }

case "${1:-}" in
  start)
    command=("$HOME/venv/bin/python" -u -m codegen2_jax.train "${@:2}")
    if [[ -n $dry_run ]]; then echo "${command[@]@Q}" && exit 0; fi
    if running; then echo "$(hostname): training runs already." && exit 0; fi
    mkdir -p "$home" && cd "$HOME" && rm -f "$home/code"
    if [[ -f $home/log ]]; then mv "$home/log" "$home/log.$(date +%s)"; fi
    # A machine that shuts down sends SIGTERM to all: this shell stays until training has saved and left its exit code.
    # shellcheck disable=SC2016
    nohup setsid bash -c 'trap : TERM INT; code=0; "${@:2}" || code=$?; echo "$code" > "$1/code"' \
      _ "$home" "${command[@]}" > "$home/log" 2>&1 < /dev/null &
    echo "$! $(birth $!)" > "$home/pid"
    echo "$(hostname): training started; its log is $home/log."
    ;;
  follow)
    [[ -f $home/pid ]] || { echo "error: nothing was started here." >&2 && exit 2; }
    if running; then tail -n +1 --pid="$pid" -f "$home/log"; else cat "$home/log"; fi
    ;;
  wait)
    while running; do sleep 1; done
    exit "$(cat "$home/code" 2> /dev/null || echo 137)" # no code: killed, or the machine was started anew
    ;;
  running) running ;;
  --help | -h | "") sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" ;;
  *) echo "error: $1 is none of start, follow, wait and running." >&2 && exit 2 ;;
esac
