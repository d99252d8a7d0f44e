"""Runs one configuration for several seeds, task orders or values, and collects means with 95 % intervals.

  python -m codegen2_jax.sweep --gin_file=pp_tf.gin --seeds=0,1,2
  python -m codegen2_jax.sweep --gin_file=finetune_er.gin --seeds=0,1,2 --set REPLAY_SIZE=100,500,1000
  python -m codegen2_jax.sweep --gin_file=pp_tf.gin --orders=5 --sweep_dir=sweeps/orders

--orders is a number of orders, the stream's own first, or task numbers such as 0123,3210. All other flags go to
codegen2_jax.train, those that name or only show a single run apart. Means are formed over seeds and orders; every
other setting has a row of its own. A value with commas stands in quotes: --set STREAM="'a,b','a,b,c'". Started again,
the same command runs what is missing or failed and continues what was killed.
"""

import sys
from pathlib import Path

from codegen2_jax import cli
from codegen2_jax.errors import UserError

# Flags that name one run's directory, or that keep a run from training.
WITHOUT_EFFECT = ("model_dir", "print_config", "dry_run", "show_batch")


def _sweep(argv: list[str]) -> None:
    parser = cli.Parser("codegen2_jax.sweep", description=__doc__)
    parser.add_argument("--seeds", default="0", help="values of SEED, comma separated (default: 0)")
    parser.add_argument("--orders", help="how many task orders, or the orders themselves")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=V1,V2", dest="values")
    parser.add_argument("--sweep_dir", help="where the runs go (default: sweeps/<names of the gin files>)")
    given, arguments = parser.parse_known_args(argv)
    from codegen2_jax.continual import sweep
    from codegen2_jax.reporting import sweep_table

    job, _ = cli.describe(["codegen2_jax.sweep", *arguments], refused=WITHOUT_EFFECT)
    axes = sweep.axes(job, seeds=given.seeds, orders=given.orders, values=given.values)
    place = Path(given.sweep_dir or Path("sweeps", cli.run_name(arguments)))
    cells = sweep.plan(arguments, axes, place, lambda line: cli.describe(["sweep", *line]))
    failed: dict[int, str] = {}
    try:
        sweep.run(cells, arguments, failed)
    finally:
        print(sweep_table.write(cells, place, failed))
    if failed:
        first = min(failed)
        message = f"{cells[first].name}: {failed[first]}".rstrip(".")
        raise UserError(f"{len(failed)} of {len(cells)} runs did not end; the first: {message}.")


def main(argv: list[str]) -> int:
    """The exit code: 0 when every run of the sweep has ended."""
    return cli.guarded(lambda: _sweep(argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
