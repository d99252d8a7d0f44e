"""Runs programs that nobody has read against their tests, in a jail, and writes a verdict for each.

  python -m codegen2_jax.sandbox samples.jsonl                 writes samples.verdicts.jsonl and prints a table
  python -m codegen2_jax.sandbox samples.jsonl --out verdicts.jsonl --workers 8 --cpu_seconds 3
  python -m codegen2_jax.sandbox --self_test                   tries the walls of the jail from inside

A line of the file is an object: name, solution, tests, entry_point, if need be language, style, trusted_prelude.
"""

import logging
import os
import sys
from dataclasses import fields

from codegen2_jax import cli
from codegen2_jax.sandbox import command
from codegen2_jax.sandbox.programs import LANGUAGES, Limits

HELP = {
    "cpu_seconds": "CPU time of a program",
    "memory_mib": "its memory",
    "output_kib": "what it may print",
    "wall_seconds": "how long it may do nothing (default: 3 cpu_seconds + 5)",
    "processes": "how many processes it may be",
    "threads": "how many threads it may have",
    "disk_mib": "size of the folder that it may write to",
    "open_files": "how many files it may have open",
}


def main(argv: list[str]) -> int:
    """Judges the programs of a file, or tests the isolation; returns the exit code."""
    return cli.guarded(lambda: _run(argv))


def _run(argv: list[str]) -> None:
    parser = cli.Parser("codegen2_jax.sandbox", description=__doc__)
    add = parser.add_argument
    add("file", nargs="?", metavar="FILE.jsonl", help="programs, one JSON object per line")
    add("--out", metavar="FILE", help="verdicts, one JSON object per line (default: FILE.verdicts.jsonl)")
    add("--workers", type=int, default=os.cpu_count(), metavar="N", help="programs at a time (default: one per core)")
    add("--language", choices=LANGUAGES, default="python", help="of lines without one (default: python)")
    add("--packages", default="", metavar="NAMES", help="of this interpreter that programs may import, such as numpy")
    for field in fields(Limits):
        default = "" if field.default is None else f" (default: {field.default})"
        kind = int if field.type is int else float
        add(f"--{field.name}", type=kind, default=field.default, metavar="N", help=HELP[field.name] + default)
    add("--allow_unsafe_execution", action="store_true", help="run without a jail where there is none; verdicts say so")
    add("--self_test", action="store_true", help="test the isolation and stop")
    given = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s")
    limits = Limits(**{field.name: getattr(given, field.name) for field in fields(Limits)})
    options = {name: getattr(given, name) for name in command.OPTIONS}
    command.run(given.file, given.out, limits=limits, test=given.self_test, **options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
