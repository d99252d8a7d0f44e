r"""Compiles the training step of gin files for a TPU slice that is not here, and says what it takes.

  python -m codegen2_jax.precompile --topology=v5p:4x4x4 --gin_file=pretraining/codegen2_7b.gin \
      --gin_file=scale/v5p_4x4x4.gin
  python -m codegen2_jax.precompile --topology=v6e:2x2 --gin_file=pp_tf.gin --lengths=320,256 --out=pp_tf.json
  python -m codegen2_jax.precompile --topology=v5e:4x4 --gin_file=pretraining/codegen2_1b.gin \
      --gin_file=scale/v5e_4x4.gin --decode --decode_shape=128,1792,256

Needs no TPU, no data and no weights, only libtpu. Exit code 8 when the step does not fit the chips' memory; the last
lines say what to change.
"""

import sys

from codegen2_jax import cli
from codegen2_jax.sharding import topologies


def main(argv: list[str]) -> int:
    """The exit code: 0 it fits, 8 it does not, 2 a mistake in what was asked."""
    return cli.guarded(lambda: _run(argv))


def _run(argv: list[str]) -> None:
    parser = cli.Parser("codegen2_jax.precompile", description=__doc__)
    add = parser.add_argument
    add("--topology", required=True, metavar="NAME", help="generation and shape in chips: v5p:4x4x4, v6e:16x16")
    add("--devices", type=int, metavar="N", help="only the first N chips of it")
    add("--lengths", metavar="S,T", help="tokens of a source and a target of a stream of tasks (128,128)")
    add("--decode", action="store_true", help="compile prefill and the step of one token too")
    add("--decode_shape", metavar="B,S,T", help="rows, prompt tokens and new tokens (default: 8 a chip, 1792, 256)")
    add("--out", metavar="FILE", help="write what was found as JSON")
    given, arguments = parser.parse_known_args(argv)
    topologies.parse(given.topology)  # a misspelt name answers at once
    topologies.prepare()
    from codegen2_jax.training import precompilation  # late: it imports JAX, which reads what prepare() has set

    asked = precompilation.Asked.of(given)
    job, _ = cli.describe_gin(["codegen2_jax.precompile", *arguments])
    precompilation.run(job, asked, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
