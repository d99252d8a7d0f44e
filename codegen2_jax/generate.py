"""Continues prompts with a model, or fills the holes of a text.

python -m codegen2_jax.generate --model DIR --prompt "def fibonacci(n):" --max_new_tokens 64
python -m codegen2_jax.generate --model DIR --infill --file hole.py             # its holes are <mask_1>, <mask_2>, ...
python -m codegen2_jax.generate --model DIR --file task.py --n 10 --format jsonl --out samples.jsonl
"""

import sys
from dataclasses import fields

from codegen2_jax import cli
from codegen2_jax.decoding.settings import FLAGS, Generation


def main(argv: list[str]) -> int:
    """Prints or writes what the model writes; returns the exit code."""
    parser = cli.Parser("codegen2_jax.generate", description=__doc__)
    for name, options in FLAGS.items():
        parser.add_argument(f"--{name}", **options)
    parser.add_argument("--model_parallel", type=int, default=1, help="devices that share the weights (default: 1)")
    for field in fields(Generation):
        kind = {"nargs": "+"} if field.name == "stop" else {"type": field.type}
        text = f"{field.metadata['help']} (default: {field.default})"
        parser.add_argument(f"--{field.name}", default=field.default, help=text, **kind)
    return cli.guarded(lambda: _run(vars(parser.parse_args(argv))))


def _run(given: dict) -> None:
    settings = Generation.of({field.name: given[field.name] for field in fields(Generation)})
    from codegen2_jax.decoding import command  # late, since it brings JAX and a mistake above should answer at once
    from codegen2_jax.sharding.partitioning import first_devices, make_layout
    from codegen2_jax.training.initialisation import ModelSource, placed_on

    asked = command.Asked.of(given, sys.stdin.buffer)
    options = {name: given[name] for name in ("dtype", "vocabulary", "prefix_lm")}
    loaded = ModelSource(init_from=given["model"], **options).load()
    if given["model_parallel"] != 1:
        devices = first_devices(given["model_parallel"])
        # The vocabulary stays whole: many sizes divide by nothing, and sampling looks at all of it.
        layout = make_layout({"model": len(devices)}, {"vocab": None}, devices)
        loaded = placed_on(loaded, layout)
    command.answer(asked, settings, loaded, sys.stdout, name=given["model"])


if __name__ == "__main__":
    cli.keep_programs()
    sys.exit(main(sys.argv[1:]))
