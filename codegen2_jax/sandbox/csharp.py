"""C# by Mono, in a jail without /proc."""

import base64
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

from codegen2_jax.errors import UserError
from codegen2_jax.sandbox.toolchain import LAUNCHERS, Toolchain, which

_ASSERT = re.compile(r"(?<![\w.])(?:System\.Diagnostics\.)?Debug\.Assert\b")
_SEE_STACK = "print(next(line for line in open('/proc/self/maps') if '[stack]' in line))"


class Mono(Toolchain):
    """The compiler runs in the launcher's process, since a jail starts no second one."""

    def start(self, solution: str, tests: str, memory_mib: int) -> dict:
        tests = _ASSERT.sub("global::System.Diagnostics.Debug.Assert", tests)  # a solution may have a Debug of its own
        asked = super().start(solution, tests, memory_mib)
        asked["files"]["maps"] = _stack_line()
        return {**asked, "binaries": {"Launcher.exe": _launcher()}, "stack_in_place": True}


def find() -> Mono:
    """UserError where there is none."""
    compiler = _compiler()
    line = (_mono(), "Launcher.exe", str(compiler))
    # The collector's limit; nothing shared with other processes' tools.
    environment = (("MONO_GC_PARAMS", "max-heap-size={memory}m"), ("MONO_DISABLE_SHARED_AREA", "1"))
    needs = (_mono(), str(compiler.parent.parent), "/etc/mono")
    return Mono("csharp", line, ("Debug.cs",), needs, environment, links=(("/proc/self/maps", "/tmp/maps"),))


def _mono() -> str:
    return which("csharp", "mono", "Mono 6 (apt-get install mono-mcs mono-runtime)")


def _compiler() -> Path:
    compiler = Path(_mono()).parent.parent / "lib" / "mono" / "4.5" / "mcs.exe"
    if not compiler.is_file():
        raise UserError(f"there is no {compiler} to compile csharp programs; install it (apt-get install mono-mcs).")
    return compiler


@functools.cache
def _stack_line() -> str:
    """All that Mono, by way of the C library, looks for in /proc/self/maps: the line of the main stack.

    Without randomised addresses its end is the same for every process of a machine, so another process can be asked.
    """
    again = [sys.executable, "-S", "-c", _SEE_STACK]
    code = f"import ctypes, os; ctypes.CDLL(None).personality(0x0040000); os.execv({again[0]!r}, {again})"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    end = int(re.match(r"[0-9a-f]+-([0-9a-f]+) ", done.stdout)[1], 16)
    return f"{end - 2**20:x}-{end:x} rw-p 00000000 00:00 0 [stack]\n"


@functools.cache
def _launcher() -> str:
    """Our launcher in base64, compiled once per process; in memory, since no file may outlive a killed process."""
    descriptor = os.memfd_create("Launcher.exe")
    try:
        source = str(LAUNCHERS / "Launcher.cs")
        line = [_mono(), str(_compiler()), "-nologo", f"-out:/proc/self/fd/{descriptor}", source]
        done = subprocess.run(line, pass_fds=(descriptor,), capture_output=True, text=True)
        if done.returncode:
            said = (done.stdout + done.stderr).strip()[:300]
            raise UserError(f"mcs cannot compile {source}: {said}; install mono-mcs again.")
        return base64.b64encode(os.pread(descriptor, os.fstat(descriptor).st_size, 0)).decode()
    finally:
        os.close(descriptor)
