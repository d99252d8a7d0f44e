"""Evaluates a model: generates answers, scores them, prints one table and writes one JSON file.

  python -m codegen2_jax.evaluate --gin_file=evaluation/humaneval.gin --model DIR_OR_NAME
  python -m codegen2_jax.evaluate --gin_file=evaluation/humaneval.gin --gin_file=evaluation/boolq.gin --model DIR
  python -m codegen2_jax.evaluate --gin_file=evaluation/humaneval.gin --only score --out evaluations/NAME

Started again, the same command goes on where it was killed. All other flags are those of codegen2_jax.train.
"""

import sys
from pathlib import Path

from codegen2_jax import cli
from codegen2_jax.errors import UserError


def _evaluate(argv: list[str]) -> None:
    parser = cli.Parser("codegen2_jax.evaluate", description=__doc__)
    parser.add_argument("--model", help="directory of the weights, or a name such as nano_t5")
    parser.add_argument("--vocabulary", help="directory of the tokenizer's files; default: that of the weights")
    parser.add_argument("--dtype", default="float32", help="of the computation: float32 or bfloat16")
    parser.add_argument("--prefix_lm", action="store_true", default=None, help="read prompts in both directions")
    parser.add_argument("--out", metavar="DIR", help="where results go (default: evaluations/<name of the model>)")
    parser.add_argument("--only", choices=("generate", "score"), default="all", help="one step alone")
    parser.add_argument("--workers", type=int, default=2, help="programs judged at once (default: 2)")
    parser.add_argument("--allow_unsafe_execution", action="store_true", help="run programs without isolation")
    given, arguments = parser.parse_known_args(argv)
    if given.out is None and given.model is None:
        raise UserError("neither --model nor --out is given; name a model, or the folder whose samples are scored.")
    if not any("gin_file" in argument for argument in arguments):
        raise UserError(f"no --gin_file given; one of {', '.join(cli.run_files('evaluate'))}.")
    suite, text = cli.describe(["evaluate", *arguments])
    if not hasattr(suite, "benchmarks"):
        raise UserError("these gin files describe training; give evaluation/humaneval.gin, for one.")
    from codegen2_jax.evaluation.subject import Call, Subject
    from codegen2_jax.training.initialisation import ModelSource
    from codegen2_jax.training.tracking import Tracker

    subject, name = None, given.model and (Path(given.model).name or Path(given.model).resolve().name)
    if given.only != "score" and given.model:
        options = {option: getattr(given, option) for option in ("dtype", "vocabulary", "prefix_lm")}
        subject = Subject(given.model, ModelSource(init_from=given.model, **options).load())
    place = Path(given.out or Path("evaluations", name))
    unsafe = {"workers": given.workers, "allow_unsafe_execution": given.allow_unsafe_execution}
    with Tracker(place, process_index=0) as tracker:
        call = Call(directory=place, subject=subject, step=given.only, tracker=tracker, **unsafe)
        suite.run(call, config_text=text)


def main(argv: list[str]) -> int:
    """The exit code: 0 when every benchmark has its result."""
    return cli.guarded(lambda: _evaluate(argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
