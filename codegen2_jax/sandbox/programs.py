"""What goes into the sandbox and what comes out: programs, limits, verdicts."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from codegen2_jax.errors import UserError

# What a verdict can be. "infra" is no statement about the program: the sandbox itself failed, twice.
OUTCOMES = ("passed", "failed", "error", "timeout", "memory", "output", "violation", "infra")
STYLES = ("calls", "output", "program")
LANGUAGES = ("python", "java", "javascript", "ruby", "csharp")


@dataclasses.dataclass(frozen=True)
class Program:
    """One candidate solution and how it is judged.

    Attributes:
      name: what the verdict is called.
      solution: the text to be judged; all of it runs in the jail.
      tests: "calls": Python code that runs outside the jail and calls the solution by name. A function
        `check(candidate)` that it defines and does not call is called with the entry point. "program": text that is
        put behind the solution and runs in the jail with it. "output": unused.
      entry_point: the name of the solution's function, for "calls".
      language: one of LANGUAGES; "calls" is for Python.
      trusted_prelude: Python code that runs outside the jail before the tests, such as helpers that a prompt defines.
        A function named like the entry point in it is replaced by the solution's.
      style: "calls"; "program": passed if the tests ran to their end; "output": the solution is run as a program with
        an empty standard input, passed if it ended with exit code 0, what it printed is in the verdict.

    Raises:
      UserError: for an unknown language or style, a field that is no text, or tests that could tell nothing.
    """

    name: str
    solution: str
    tests: str = ""
    entry_point: str = ""
    language: str = "python"
    trusted_prelude: str = ""
    style: str = "calls"

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, str):
                raise UserError(f"program {self.name!r}: {field.name} is a {type(value).__name__}; it must be text.")
        for name, value, known in (("style", self.style, STYLES), ("language", self.language, LANGUAGES)):
            if value not in known:
                raise UserError(f"program {self.name!r}: {name}={value!r} is unknown; use one of {', '.join(known)}.")
        if self.style != "output" and not self.tests.strip():
            raise UserError(f"program {self.name!r} has no tests and would always pass; give tests or style 'output'.")
        if self.style == "calls" and self.language != "python":
            raise UserError(f"program {self.name!r}: style 'calls' is for python; give {self.language} 'program'.")
        if self.runs_calls and not self.entry_point.isidentifier():
            raise UserError(f"program {self.name!r}: entry_point={self.entry_point!r} is no name of a function.")

    @property
    def runs_calls(self) -> bool:
        """Whether tests and solution are kept apart; Python tests always are, behind the solution or not."""
        return self.style == "calls" or (self.style == "program" and self.language == "python")

    @classmethod
    def of(cls, record: Mapping[str, Any], where: str = "a program") -> "Program":
        """From a record of a JSON-lines file; UserError for unknown or missing fields."""
        known = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(record, Mapping):
            raise UserError(f"{where} is a {type(record).__name__}; it must be an object with {', '.join(known)}.")
        unknown, missing = sorted(set(record) - set(known)), sorted({"name", "solution"} - set(record))
        if unknown or missing:
            what = f"has the unknown field {unknown[0]!r}" if unknown else f"lacks the field {missing[0]!r}"
            raise UserError(f"{where} {what}; the fields are {', '.join(known)}.")
        return cls(**record)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one program may use.

    Attributes:
      cpu_seconds: CPU time of the jail from the first line of the solution on (other languages: start-up and compiler
        included). Beyond it the verdict is "timeout".
      memory_mib: address space (Python) or heap (other languages). Beyond it an allocation fails.
      output_kib: bytes on standard output and error together. Beyond it the verdict is "output".
      wall_seconds: when a program is given up that does nothing: only time counts in which it has less than a twentieth
        of a core, so that a busy machine makes no program late. It is tried once more with nothing beside it, and is a
        "timeout" if it sleeps then too. None: 3 cpu_seconds + 5.
      processes: 1: the program starts none. More are for toolchains that need them.
      threads: at one time, the first included.
      disk_mib: of the one folder that can be written, which is in memory.
      open_files: descriptors.
    """

    cpu_seconds: float = 10.0
    memory_mib: int = 512
    output_kib: int = 64
    wall_seconds: float | None = None
    processes: int = 1
    threads: int = 16
    disk_mib: int = 8
    open_files: int = 64

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "wall_seconds" and value is None:
                continue
            whole = field.type is int
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                raise UserError(f"{field.name}={value!r} must be {'a whole number' if whole else 'a number'}.")
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"{field.name}={value!r} must be positive and finite.")
        least = {"memory_mib": 64, "open_files": 16}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise UserError(f"{name}={getattr(self, name)} starts no interpreter; give {value} or more.")

    @property
    def wall(self) -> float:
        """Seconds until a program is given up."""
        return 3 * self.cpu_seconds + 5 if self.wall_seconds is None else self.wall_seconds


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of a program.

    Attributes:
      name: the program's.
      outcome: one of OUTCOMES. passed; failed: it ran and the tests do not agree; error: it raised, exited or does not
        compile; timeout, memory, output: a limit; violation: it tried what the jail forbids or answered with something
        other than a plain value.
      detail: one line, "" for passed. Begins with the finer outcome where there is one: wrong, exception, exited,
        cpu_time, asleep, protocol, system_call.
      cpu_seconds: of the solution, start-up of the interpreter not counted.
      wall_seconds: of the whole, start-up included.
      stdout, stderr: what the solution printed, up to the limit.
      isolated: False where the program ran without a jail, which only allow_unsafe_execution permits.
    """

    name: str
    outcome: str
    detail: str
    cpu_seconds: float
    wall_seconds: float
    stdout: str = ""
    stderr: str = ""
    isolated: bool = True

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"

    def record(self) -> dict[str, Any]:
        """As a line of a JSON-lines file."""
        return dataclasses.asdict(self)
