"""Draws runs and evaluations: tables, figures and a page, from scores.json, metrics.jsonl, retrieval.json and
evaluation.json.

  python -m codegen2_jax.report runs/pp_tf                        writes runs/pp_tf/report/index.html
  python -m codegen2_jax.report runs/pp_tf runs/finetune --out report
  python -m codegen2_jax.report runs/codegen2_nano                curves of pretraining, finished or not
  python -m codegen2_jax.report runs/retrieval_synthetic          a study of retrieval (RETRIEVAL_ONLY)
  python -m codegen2_jax.report evaluations/nano                  results of codegen2_jax.evaluate
"""

import sys
from pathlib import Path

from codegen2_jax import cli
from codegen2_jax.errors import UserError


def main(argv: list[str]) -> int:
    """Writes the report and prints where it is; returns the exit code."""
    return cli.guarded(lambda: _run(argv))


def _run(argv: list[str]) -> None:
    parser = cli.Parser("codegen2_jax.report", description=__doc__)
    text = "directory of a finished continual run, of a study of retrieval, of a pretraining run, or of an evaluation"
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help=text)
    text = "directory to write (default: report in the run directory, or here for several runs)"
    parser.add_argument("--out", metavar="DIR", help=text)
    given = parser.parse_args(argv)
    out = given.out or (Path(given.runs[0]) / "report" if len(given.runs) == 1 else "report")
    try:
        from codegen2_jax.reporting import html_page
    except ModuleNotFoundError as error:
        if error.name not in ("matplotlib", "scipy"):
            raise
        raise UserError(f"the report needs {error.name}; pip install 'codegen2_jax[report]'.") from error
    print(f"wrote {html_page.write(given.runs, out)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
