"""A small process that outlives programs: it forks a grader for each, and leaves nothing behind.

It imports what a grader needs and nothing else, so that a fork costs a millisecond, and is never a fork of the process
that asked. When the pipe from its parent closes, for whatever reason, it kills what runs and ends.
"""

import gc
import json
import os
import resource
import select
import signal
import sys
import time
import traceback

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_GRACE_SECONDS = 10  # beyond the wall limit, for a grader to end by itself


def main():
    """Reads requests, one JSON line each, from descriptor 0 and writes verdicts to descriptor 1."""
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    requests, verdicts = os.dup(0), os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    for fd in (requests, verdicts, null):
        os.set_inheritable(fd, False)
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans come to us and are reaped
    lines = _lines(requests)
    settings = json.loads(next(lines))
    if settings["uid"] is not None:
        os.setgroups([])
        os.setresgid(*[settings["uid"]] * 3)
        os.setresuid(*[settings["uid"]] * 3)

    from codegen2_jax.sandbox import grader

    os.write(verdicts, b'{"ready": true}\n')
    gc.freeze()
    for line in lines:
        request = json.loads(line)
        verdict = _judge(request, grader, requests, prctl)
        _write(verdicts, json.dumps(verdict).encode() + b"\n")


def _lines(fd):
    rest = b""
    while part := os.read(fd, 2**20):
        *whole, rest = (rest + part).split(b"\n")
        yield from whole


def _write(fd, data):
    while data:
        data = data[os.write(fd, data) :]


def _judge(request, grader, requests, prctl):
    result, result_w = os.pipe()
    start, keeper = time.monotonic(), os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != keeper:
                os._exit(1)
            os.close(requests)
            for name, value in request["grader_limits"].items():
                resource.setrlimit(getattr(resource, name), (value, value))
            _write(result_w, json.dumps(grader.judge(request)).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(70)
    os.close(result_w)
    text, deadline = b"", start + request["jail"]["limits"]["wall"] + _GRACE_SECONDS
    while True:
        ready, _, _ = select.select([result, requests], [], [], max(0.0, deadline - time.monotonic()))
        if not ready or requests in ready:  # too late, or the parent is gone: it sends nothing meanwhile
            os.kill(pid, signal.SIGKILL)
        if not ready:
            break
        if requests in ready:
            _reap_all()
            os._exit(0)
        part = os.read(result, 2**20)
        if not part:
            break
        text += part
    os.close(result)
    _, status = os.waitpid(pid, 0)
    _reap_all()
    try:
        return json.loads(text)
    except ValueError:
        pass
    code = os.waitstatus_to_exitcode(status)
    outcome, detail = "infra", f"the grader ended with {code}"
    if code == -signal.SIGXCPU:
        outcome, detail = "timeout", "cpu_time: the tests used up their own CPU time on the solution's answers"
    elif code == -signal.SIGKILL:
        detail = "asleep: the tests were still running at the limit on the wall clock"
    wall = time.monotonic() - start
    return {"outcome": outcome, "detail": detail, "cpu_seconds": 0.0, "wall_seconds": wall, "stdout": "", "stderr": ""}


def _reap_all():
    """Waits for everything that a killed grader left: its jail is dying, by the order that it gave the kernel."""
    try:
        while True:
            os.waitpid(-1, 0)
    except ChildProcessError:
        pass


if __name__ == "__main__":
    sys.exit("started by runner.py")
