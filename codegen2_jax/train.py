"""Trains what gin files describe.

  python -m codegen2_jax.train --gin_file=pp_tf.gin
  python -m codegen2_jax.train --gin_file=pp_tf.gin --gin.SEED=1 --gin.INIT_FROM='"nano_t5"' --model_dir=runs/second

Started again, the same command continues where it stopped, or says that the run is finished.
"""

import sys

from codegen2_jax import cli


def main(argv: list[str], restart: bool = False) -> int:
    """The exit code: 0 done, 2 a mistake in what was asked, others in codegen2_jax/errors.py."""
    return cli.run(argv, __doc__, restart)


if __name__ == "__main__":
    cli.keep_programs()
    sys.exit(main(sys.argv, restart=True))
