"""Evaluates a model: generates answers, scores them, prints one table and writes one JSON file.

  python -m codegen2_jax.evaluate --gin_file=evaluation/humaneval.gin --model DIR_OR_NAME
  python -m codegen2_jax.evaluate --gin_file=evaluation/humaneval.gin --gin_file=evaluation/boolq.gin --model DIR
  python -m codegen2_jax.evaluate --gin_file=evaluation/humaneval.gin --only score --out evaluations/NAME

Started again, the same command goes on where it was killed. Gin files and --gin.NAME=VALUE are those of
codegen2_jax.train; its other flags are not taken.
"""

import sys
from pathlib import Path

from codegen2_jax import cli
from codegen2_jax.errors import UserError
from codegen2_jax.evaluation.command import FLAGS, check


def _evaluate(argv: list[str]) -> None:
    parser = cli.Parser("codegen2_jax.evaluate", description=__doc__)
    for name, options in FLAGS.items():
        parser.add_argument(f"--{name}", **options)
    given, arguments = parser.parse_known_args(argv)
    check(vars(given), parser.get_default)
    if not any("gin_file" in argument for argument in arguments):
        raise UserError(f"no --gin_file given; one of {', '.join(cli.run_files('evaluate'))}.")
    suite, text = cli.describe_gin(["codegen2_jax.evaluate", *arguments])
    if not hasattr(suite, "benchmarks"):
        raise UserError("these gin files describe training; give evaluation/humaneval.gin, for one.")
    if given.print_config or given.dry_run:
        return print(text, end="") if given.print_config else suite.dry_run()
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
        suite.run(call, config_text=cli.without_places(text))


def main(argv: list[str]) -> int:
    """The exit code: 0 when every benchmark has its result."""
    return cli.guarded(lambda: _evaluate(argv), reads_and_writes=True)


if __name__ == "__main__":
    cli.keep_programs()
    sys.exit(main(sys.argv[1:]))
