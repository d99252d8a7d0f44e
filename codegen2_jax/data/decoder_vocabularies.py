"""Makes CodeGen's vocabularies: from GPT-2's files as the published ones were, or over a BPE trained on the spot."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from codegen2_jax.data import byte_level
from codegen2_jax.data.vocabulary import Vocabulary, train_bpe
from codegen2_jax.errors import UserError

_BLANKS = re.compile(r" {2,31}|\t{2,9}")


def write_codegen_vocabulary(
    gpt2_directory: str | Path,
    directory: str | Path,
    *,
    family: str = "codegen2",
    num_masks: int = byte_level.CODEGEN_MASKS,
) -> Vocabulary:
    """Writes `tokenizer.json` and `tokenizer_config.json` of CodeGen2, or of CodeGen 1 with family="codegen1-multi".

    `gpt2_directory` holds one `*vocab.json` and one `*merges.txt`. With GPT-2's own the result is CodeGen2's: 51,200
    entries, `<|endoftext|>` 50256, `<sep>` 50299, `<eom>` 50300, `<mask_k>` 51200 - k (the Hub's tokenizer.json).
    """
    gpt2_directory = Path(gpt2_directory)
    pair = [sorted(gpt2_directory.glob(pattern)) for pattern in ("*vocab.json", "*merges.txt")]
    if [len(files) for files in pair] != [1, 1]:
        raise UserError(f"{gpt2_directory} does not hold one *vocab.json and one *merges.txt; give GPT-2's files.")
    vocab = json.loads(pair[0][0].read_text(encoding="utf-8"))
    merges = byte_level.read_merges(pair[1][0].read_text(encoding="utf-8"))
    return _write(byte_level.codegen_content(vocab, merges, family, num_masks), directory)


def train_codegen_vocabulary(texts: Iterable[str], size: int, num_masks: int, directory: str | Path) -> Vocabulary:
    """Trains a vocabulary in CodeGen2's layout of `size` entries and writes it as `write_codegen_vocabulary` does.

    In the order of their ids: 256 bytes and merges, `<|endoftext|>`, 38 runs of blanks, four dummies, `<sep>`, `<eom>`,
    `num_masks` masks. The BPE never sees a run of blanks, which has a token of its own.
    """
    added = len(byte_level.codegen_tokens("codegen2", 0, num_masks))
    least = 256 + 1 + added
    if num_masks < 1 or size < least:
        raise UserError(
            f"size={size}, num_masks={num_masks}: at least one mask and {least} entries are needed (256 bytes, "
            f"{byte_level.END} and {added} tokens of CodeGen2's); raise them."
        )
    tokenizer = train_bpe((_BLANKS.split(text) for text in texts), size - added - 1, ())
    learned = tokenizer.get_vocab_size()
    if learned != size - added - 1:
        raise UserError(f"the texts give only {learned + added + 1} entries, size={size} was asked for; lower it.")
    model = json.loads(tokenizer.to_str())["model"]
    vocab = {**model["vocab"], byte_level.END: learned}
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    return _write(byte_level.codegen_content(vocab, merges, "codegen2", num_masks), directory)


def _write(content: dict, directory: str | Path) -> Vocabulary:
    Vocabulary(content, byte_level.digest_of(content)).save(directory)
    return Vocabulary.from_directory(directory)
