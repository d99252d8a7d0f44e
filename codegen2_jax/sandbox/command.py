"""What `python -m codegen2_jax.sandbox` does: programs of a file in, verdicts and a table out."""

import collections
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from codegen2_jax.errors import UserError
from codegen2_jax.sandbox import isolation, languages, self_test
from codegen2_jax.sandbox.programs import OUTCOMES, Limits, Program, Verdict
from codegen2_jax.sandbox.runner import Sandbox

OPTIONS = ("workers", "language", "packages", "allow_unsafe_execution")
_PROGRESS_SECONDS = 5


def run(
    file: str | None, out: str | None, *, limits: Limits, workers: int, language: str, packages: str,
    allow_unsafe_execution: bool, test: bool,
) -> None:  # fmt: skip
    """Judges a file, or tests the isolation. UserError for what cannot be read, written or run."""
    if test:
        if file or out:
            raise UserError(f"--self_test judges no program; leave out {file or '--out'}.")
        test_isolation()
        return
    if file is None:
        raise UserError("no file with programs is given; python -m codegen2_jax.sandbox FILE.jsonl, or --self_test.")
    programs = read(file, language)
    for missing in {program.language for program in programs} - {"python"}:
        languages.find(missing)  # before hours of work
    target = Path(out) if out else Path(file).with_suffix(".verdicts.jsonl")
    if target.resolve() == Path(file).resolve():
        raise UserError(f"--out {out} is the file with the programs; choose another.")
    names = tuple(name for name in packages.split(",") if name)
    with Sandbox(workers, limits, allow_unsafe_execution, names) as sandbox:
        try:
            lines = target.open("w", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {target}: {error.strerror}; choose another --out.") from error
        with lines:
            verdicts = []
            for verdict in progress(sandbox.judge(programs), len(programs)):
                lines.write(json.dumps(verdict.record()) + "\n")
                lines.flush()
                verdicts.append(verdict)
    print(table(verdicts))
    print(f"wrote {target}")


def read(file: str, language: str) -> list[Program]:
    """The programs of a JSON-lines file; UserError names the line that is none."""
    try:
        lines = Path(file).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}; give a JSON-lines file in UTF-8.") from error
    programs = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{file} line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is no JSON: {error}.") from error
        if isinstance(record, dict):
            record = {"language": language, **record}
        try:
            programs.append(Program.of(record, where))
        except UserError as error:
            raise UserError(str(error) if str(error).startswith(where) else f"{where}: {error}") from error
    if not programs:
        raise UserError(f"{file} holds no programs; a line is an object with name, solution, tests and entry_point.")
    return programs


def progress(verdicts: Iterator[Verdict], total: int) -> Iterator[Verdict]:
    """Passes verdicts on and says now and then how far they are."""
    start = shown = time.monotonic()
    for done, verdict in enumerate(verdicts, 1):
        yield verdict
        now = time.monotonic()
        if now - shown >= _PROGRESS_SECONDS:
            shown, speed = now, done / (now - start)
            left = f"{(total - done) / speed:.0f} s left"
            print(f"{done} of {total} programs, {speed:.1f} per second, {left}", file=sys.stderr, flush=True)


def table(verdicts: Sequence[Verdict]) -> str:
    """How many programs came to which end, with their times."""
    rows = [("outcome", "programs", "share", "median CPU s", "median wall s")]
    groups = collections.defaultdict(list)
    for verdict in verdicts:
        groups[verdict.outcome].append(verdict)
    for outcome in (name for name in OUTCOMES if name in groups):
        group = groups[outcome]
        cpu, wall = (statistics.median(getattr(v, name) for v in group) for name in ("cpu_seconds", "wall_seconds"))
        share = f"{100 * len(group) / len(verdicts):.1f} %"
        rows.append((outcome, str(len(group)), share, f"{cpu:.3f}", f"{wall:.3f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    if not all(verdict.isolated for verdict in verdicts):
        lines.append("These programs ran WITHOUT isolation: they could have forged their verdicts.")
    return "\n".join(lines)


def test_isolation() -> None:
    """Prints what was tried and whether the walls held; UserError where one did not."""
    results = self_test.run(isolation.find())
    for attempt, outcome in results:
        print(f"{'held' if outcome == 'held' else 'BROKEN':<8}{attempt}{'' if outcome == 'held' else ': ' + outcome}")
    if broken := [attempt for attempt, outcome in results if outcome != "held"]:
        raise UserError(f"the isolation does not hold ({', '.join(broken)}): {isolation.HINT}.")
