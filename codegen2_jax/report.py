"""Draws finished runs: tables, figures and a page, from their scores.json and metrics.jsonl.

python -m codegen2_jax.report runs/pp_tf                        writes runs/pp_tf/report/index.html
python -m codegen2_jax.report runs/pp_tf runs/finetune --out report
"""

import argparse
import sys
from pathlib import Path

from codegen2_jax.errors import UserError


class _Parser(argparse.ArgumentParser):
    """Mistakes on the command line are one line, like every other."""

    def error(self, message: str):
        raise UserError(f"{message}; usage: python -m codegen2_jax.report RUN_DIR... [--out DIR]")


def main(argv: list[str]) -> int:
    """Writes the report and prints where it is; returns the exit code."""
    try:
        parser = _Parser(prog="codegen2_jax.report", description=__doc__.splitlines()[0], allow_abbrev=False)
        parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="directory of a finished run")
        text = "directory to write (default: report in the run directory, or here for several runs)"
        parser.add_argument("--out", metavar="DIR", help=text)
        arguments = parser.parse_args(argv)
        out = arguments.out or (Path(arguments.runs[0]) / "report" if len(arguments.runs) == 1 else "report")
        try:
            from codegen2_jax.reporting import html_page
        except ModuleNotFoundError as error:
            if error.name not in ("matplotlib", "scipy"):
                raise
            raise UserError(f"the report needs {error.name}; pip install 'codegen2_jax[report]'.") from error
        print(f"wrote {html_page.write(arguments.runs, out)}")
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
