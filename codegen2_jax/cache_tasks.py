"""Caches SeqIO tasks as ArrayRecord files, which training and evaluation read without TensorFlow.

python -m codegen2_jax.cache_tasks --stream=pytask_cl --cache_dir=cache [--beam='--direct_num_workers=8']
"""

import json
import os
import sys
import traceback
from pathlib import Path

from codegen2_jax import cli
from codegen2_jax.errors import UserError


def _cache(argv: list[str]) -> None:
    parser = cli.Parser("codegen2_jax.cache_tasks", description=__doc__)
    parser.add_argument("--stream", "--tasks", dest="names", required=True, help="streams or tasks, comma separated")
    parser.add_argument("--cache_dir", default="cache", help="one folder per task is made here (default: cache)")
    packaged = Path(__file__).parent / "pretrained" / "nano_t5"
    parser.add_argument("--vocabulary", default=str(packaged), help="directory of the vocabulary (default: nano_t5's)")
    parser.add_argument("--beam", nargs="?", const="", metavar="OPTIONS", help="run on Apache Beam, with its OPTIONS")
    modules = "tasks.pytask_cl,tasks.codetask_cl,tasks.documents"
    parser.add_argument("--task_modules", default=modules, help=f"modules that register tasks (default: {modules})")
    parser.add_argument("--report", help="file for the outcome as JSON, for the command that started this one")
    arguments = parser.parse_args(argv)
    error = None
    try:
        from codegen2_jax.data import beam_caching, cache_writing

        infos = cache_writing.build(
            arguments.names.split(","),
            cache_dir=arguments.cache_dir,
            vocabulary_dir=arguments.vocabulary,
            task_modules=arguments.task_modules.split(","),
            write_split=beam_caching.split_writer(arguments.beam, arguments.task_modules.split(",")),
        )
        print(cache_writing.table(infos))
    except UserError as fault:
        error = fault
    if arguments.report:
        Path(arguments.report).write_text(json.dumps({"error": error and str(error)}), encoding="utf-8")
    if error:
        raise error


def main(argv: list[str]) -> int:
    """Caches what is asked for and prints a table of counts; returns the exit code."""
    return cli.guarded(lambda: _cache(argv))


if __name__ == "__main__":
    try:
        exit_code = main(sys.argv[1:])
    except Exception:
        exit_code = traceback.print_exc() or 1
    # TensorFlow may hang when the interpreter takes its threads down: leave without that.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
