"""A small process that outlives programs: it forks a grader for each, and leaves nothing behind.

It imports what a grader needs and nothing else, so that a fork costs a millisecond, and is never a fork of the process
that asked. When its parent ends, however that happens, it kills what runs and ends too.
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
_PATIENCE = 20  # wall limits until a grader that does nothing is ended; it usually notices by itself


def main(parent):
    """Reads requests, one JSON line each, from descriptor 0 and writes verdicts to descriptor 1.

    parent: a descriptor of the process that asks (pidfd), readable once it has ended; a pipe alone would be kept open
    by other children of it.
    """
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    requests, verdicts, parent = os.dup(0), os.dup(1), os.dup(parent)  # small numbers, which `select` needs
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.closerange(max(requests, verdicts, parent, null) + 1, 4096)
    for fd in (requests, verdicts, null, parent):
        os.set_inheritable(fd, False)
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans come to us and are reaped
    lines = _lines(requests, parent)
    settings = json.loads(next(lines))
    if settings["uid"] is not None:
        os.setgroups([])
        os.setresgid(*[settings["uid"]] * 3)
        os.setresuid(*[settings["uid"]] * 3)
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # of the stage; a change of user forgets such orders

    from codegen2_jax.sandbox import grader

    os.write(verdicts, b'{"ready": true}\n')
    gc.freeze()
    for line in lines:
        request = json.loads(line)
        verdict = _judge(request, grader, (requests, parent), prctl)
        _write(verdicts, json.dumps(verdict).encode() + b"\n")


def _lines(fd, parent):
    rest = b""
    while parent not in select.select([fd, parent], [], [])[0] and (part := os.read(fd, 2**20)):
        *whole, rest = (rest + part).split(b"\n")
        yield from whole


def _write(fd, data):
    while data:
        data = data[os.write(fd, data) :]


def _judge(request, grader, upward, prctl):
    result, result_w = os.pipe()
    start, keeper = time.monotonic(), os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != keeper:
                os._exit(1)
            for fd in upward:
                os.close(fd)
            for name, value in request["grader_limits"].items():
                hard = value + (name == "RLIMIT_CPU")  # the soft limit's signal tells what happened, the hard one kills
                resource.setrlimit(getattr(resource, name), (value, hard))
            _write(result_w, json.dumps(grader.judge(request)).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(70)
    os.close(result_w)
    text, deadline = b"", start + _PATIENCE * request["jail"]["limits"]["wall"] + 60
    while True:
        ready, _, _ = select.select([result, *upward], [], [], max(0.0, deadline - time.monotonic()))
        gone = any(fd in ready for fd in upward)  # the parent sends nothing meanwhile
        if not ready or gone:
            os.kill(pid, signal.SIGKILL)
        if not ready:
            break
        if gone:
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
