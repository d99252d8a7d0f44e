"""Toolchains of other languages: where they are, what they need to see, how a program with its tests is started.

Outside Python, solution and tests share a process, so its exit code proves nothing: `exit(0)` before the first test is
a clean end. Each language therefore has a launcher, in `launchers/`, that reads an unguessable token before it loads
the program and repeats it only after the tests have returned. What that does not stop is written in docs/sandbox.md.
"""

import dataclasses
import functools
import os
import re
import shutil
from pathlib import Path

from codegen2_jax.errors import UserError

_LAUNCHERS = Path(__file__).resolve().parent / "launchers"


@dataclasses.dataclass(frozen=True)
class Toolchain:
    """A language as it stands on this machine.

    Attributes:
      line: the command; {memory} is the heap in MiB.
      launcher: the launcher's file in `launchers/`.
      needs: paths that the jail shows besides libraries.
      environment: of the command.
      threads: least number that the runtime needs.
      open_files: least number that it needs.
      tries_sockets: whether the runtime itself opens one at its start, so that it is refused without being a violation.
    """

    language: str
    line: tuple[str, ...]
    launcher: str
    needs: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    threads: int = 64
    open_files: int = 256
    tries_sockets: bool = False

    def start(self, solution: str, tests: str, memory_mib: int) -> dict:
        """What `inside.py` writes and becomes."""
        launcher = (_LAUNCHERS / self.launcher).read_text(encoding="utf-8")
        text = solution + "\n" + tests
        name = {"java": f"{java_class(text)}.java", "javascript": "program.js", "ruby": "program.rb"}[self.language]
        line = [part.format(memory=memory_mib) for part in self.line]
        return {"files": {self.launcher: launcher, name: text}, "line": line, "environment": dict(self.environment)}


def java_class(text: str) -> str:
    """The class after which javac wants the file to be called."""
    public = re.search(r"^\s*public\s+(?:final\s+|abstract\s+)?(?:class|interface|enum|record)\s+(\w+)", text, re.M)
    return public[1] if public else "Problem"


@functools.cache
def find(language: str) -> Toolchain:
    """The toolchain of a language; UserError where this machine has none."""
    finders = {"java": _java, "javascript": _node, "ruby": _ruby, "csharp": _csharp}
    return finders[language]()


def present() -> list[Toolchain]:
    """All toolchains of this machine."""
    found = []
    for language in ("java", "javascript", "ruby", "csharp"):
        try:
            found.append(find(language))
        except UserError:
            pass
    return found


def _which(language: str, command: str, package: str) -> str:
    path = shutil.which(command)
    if path is None:
        raise UserError(f"there is no {command} on PATH to run {language} programs; install {package}.")
    return os.path.realpath(path)


def _java() -> Toolchain:
    _which("java", "javac", "a JDK, version 11 or newer (apt-get install default-jdk-headless)")
    java = _which("java", "java", "a JDK")
    home = str(Path(java).parent.parent)
    options = ("-ea", "-Xmx{memory}m", "-Xss8m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")
    options += ("-Xshare:auto", "-XX:ReservedCodeCacheSize=64m", "-XX:+DisableAttachMechanism")
    needs = (home, *(str(path) for path in sorted(Path("/etc").glob("java*"))))
    libraries = f"{home}/lib:{home}/lib/server"  # found through /proc otherwise, which a jail has not
    environment = (("LD_LIBRARY_PATH", libraries),)
    return Toolchain("java", (java, *options, "Launcher.java"), "Launcher.java", needs, environment, tries_sockets=True)


def _node() -> Toolchain:
    node = _which("javascript", "node", "Node.js 18 or newer (apt-get install nodejs)")
    line = (node, "--max-old-space-size={memory}", "--disable-wasm-trap-handler", "launcher.js")
    return Toolchain("javascript", line, "launcher.js", (node,))


def _ruby() -> Toolchain:
    ruby = _which("ruby", "ruby", "Ruby 3 (apt-get install ruby)")
    gems = ("/usr/share/rubygems-integration", "/var/lib/gems")  # test/unit is one
    return Toolchain("ruby", (ruby, "launcher.rb"), "launcher.rb", (ruby, *gems))


def _csharp() -> Toolchain:
    raise UserError("there is no toolchain to run csharp programs: neither mono nor dotnet is supported here yet.")
