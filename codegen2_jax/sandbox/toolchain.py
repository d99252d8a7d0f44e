"""A toolchain: what the jail shows of it, and how a program with its tests is started."""

import dataclasses
import os
import re
import shutil
from pathlib import Path

from codegen2_jax.errors import UserError

LAUNCHERS = Path(__file__).resolve().parent / "launchers"


@dataclasses.dataclass(frozen=True)
class Toolchain:
    """A language as it stands on this machine.

    Attributes:
      line: the command; {memory} is the heap in MiB, here and in the environment.
      launchers: files of `launchers/` that stand beside the program.
      needs: paths that the jail shows besides libraries.
      environment: of the command.
      links: symbolic links (path, target) that the jail has.
      threads: least number that the runtime needs.
      open_files: least number that it needs.
      tries_sockets: whether the runtime itself opens one at its start, so that it is refused without being a violation.
    """

    language: str
    line: tuple[str, ...]
    launchers: tuple[str, ...]
    needs: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    threads: int = 64
    open_files: int = 256
    tries_sockets: bool = False

    def start(self, solution: str, tests: str, memory_mib: int) -> dict:
        """What `inside.py` writes ("binaries" in base64) and becomes."""
        text = solution + "\n" + tests
        files = {name: (LAUNCHERS / name).read_text(encoding="utf-8") for name in self.launchers}
        return {
            "files": {**files, self.file_of(text): text},
            "binaries": {},
            "line": [part.format(memory=memory_mib) for part in self.line],
            "environment": {name: value.format(memory=memory_mib) for name, value in self.environment},
            "stack_in_place": False,
        }

    def file_of(self, text: str) -> str:
        """What the program's file is called."""
        if self.language == "java":
            return f"{java_class(text)}.java"
        return {"javascript": "program.js", "ruby": "program.rb", "csharp": "Program.cs"}[self.language]


def java_class(text: str) -> str:
    """The class after which javac wants the file to be called."""
    public = re.search(r"^\s*public\s+(?:final\s+|abstract\s+)?(?:class|interface|enum|record)\s+(\w+)", text, re.M)
    return public[1] if public else "Problem"


def which(language: str, command: str, package: str) -> str:
    path = shutil.which(command)
    if path is None:
        raise UserError(f"there is no {command} on PATH to run {language} programs; install {package}.")
    return os.path.realpath(path)
