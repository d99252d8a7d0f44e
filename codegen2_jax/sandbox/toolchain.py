"""A toolchain: what the jail shows of it, and how a program with its tests is started."""

import dataclasses
import os
import re
import shutil
from pathlib import Path

from codegen2_jax.errors import UserError

LAUNCHERS = Path(__file__).resolve().parent / "launchers"

_MAIN = {
    "java": re.compile(r"(\bstatic\s+(?:final\s+)?void\s+)main(?=\s*\()"),
    "csharp": re.compile(r"(\bstatic\s+(?:async\s+)?(?:void|int|Task(?:<int>)?)\s+)Main(?=\s*\()"),
}
_NEVER = re.compile(r"(?!)()")
_SUFFIXES = {"javascript": "js", "ruby": "rb"}


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
        # Within the solution's class the tests begin at a name that no solution can know.
        entry = f"main_{os.urandom(8).hex()}"
        tests, found = _MAIN.get(self.language, _NEVER).subn(rf"\g<1>{entry}", tests, count=1)
        files = {name: (LAUNCHERS / name).read_text(encoding="utf-8") for name in self.launchers}
        return {
            "files": files | self.sources(solution, tests),
            "binaries": {},
            "line": [part.format(memory=memory_mib) for part in self.line] + [entry] * found,
            "environment": {name: value.format(memory=memory_mib) for name, value in self.environment},
            "stack_in_place": False,
        }

    def sources(self, solution: str, tests: str) -> dict[str, str]:
        """Files by name: two where the language can load one after the other, so that no end of the first, such as a
        stray `return`, cuts off the second; one where the tests stand within the solution's class."""
        if self.language in _SUFFIXES:
            suffix = _SUFFIXES[self.language]
            return {f"solution.{suffix}": solution, f"tests.{suffix}": tests}
        text = solution + "\n" + tests
        return {f"{java_class(text)}.java" if self.language == "java" else "Program.cs": text}


def java_class(text: str) -> str:
    """The class after which javac wants the file to be called."""
    public = re.search(r"^\s*public\s+(?:final\s+|abstract\s+)?(?:class|interface|enum|record)\s+(\w+)", text, re.M)
    return public[1] if public else "Problem"


def which(language: str, command: str, package: str) -> str:
    path = shutil.which(command)
    if path is None:
        raise UserError(f"there is no {command} on PATH to run {language} programs; install {package}.")
    return os.path.realpath(path)
