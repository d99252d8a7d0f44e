"""The tokenizer files of llama2.c as a Llama tokenizer of Hugging Face's: BPE with bytes for what it does not know.

Source: karpathy/llama2.c `tokenizer.py` and `run.c` (the file, the order of merges), huggingface/transformers
`convert_slow_tokenizer.py` (how a SentencePiece BPE becomes a tokenizer.json).
"""

import struct
from collections.abc import Sequence
from pathlib import Path

from codegen2_jax.data import byte_level
from codegen2_jax.data.vocabulary import Vocabulary
from codegen2_jax.errors import UserError

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")
"""Ids 0 to 2; behind them the 256 bytes, then the pieces."""


def read_llama2c(path: str | Path) -> tuple[list[str], list[float]]:
    """(pieces, scores) of a tokenizer.bin: int32 longest piece, then float32 score, int32 length, bytes of each."""
    data, position, pieces, scores = Path(path).read_bytes(), 4, [], []
    while position < len(data):
        try:
            score, length = struct.unpack_from("<fi", data, position)
            position += 8
            pieces.append(data[position : position + length].decode("utf-8"))
        except (struct.error, UnicodeDecodeError) as error:
            raise UserError(f"{path} is no tokenizer.bin of llama2.c (byte {position}: {error}).") from error
        if length < 0:  # the same bytes would be read for ever
            raise UserError(f"{path} is no tokenizer.bin of llama2.c (byte {position}: a piece of {length} bytes).")
        scores.append(score)
        position += length
    first = 3 + 256
    if position != len(data) or len(pieces) < first or pieces[3:first] != [f"<0x{byte:02X}>" for byte in range(256)]:
        raise UserError(f"{path} is no tokenizer.bin of llama2.c: ids 3 to 258 are not the 256 bytes.")
    return pieces, scores


def llama_content(pieces: Sequence[str], scores: Sequence[float]) -> dict:
    """The content of the tokenizer.json that encodes and decodes as llama2.c does.

    Of two pieces that neighbours in the text could become, the one of the higher score is made first. A blank is put
    before a text, and taken away again behind `<s>`. A text's own U+2581 becomes a blank, as in every Llama tokenizer.
    """
    first = len(SPECIAL_TOKENS) + 256
    names = [*SPECIAL_TOKENS, *pieces[3:first], *(piece.replace(" ", "\u2581") for piece in pieces[first:])]
    vocab = {name: index for index, name in enumerate(names)}
    if len(vocab) != len(names):
        raise UserError(f"{len(names) - len(vocab)} pieces occur more than once; the file is damaged.")
    merges = []
    for index in sorted(range(first, len(names)), key=lambda index: -scores[index]):
        name = names[index]
        pairs = [(name[:cut], name[cut:]) for cut in range(1, len(name))]
        pairs = [pair for pair in pairs if all(vocab.get(part, 0) >= first for part in pair)]
        merges += sorted(pairs, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    content = byte_level.content_of(vocab, merges)
    content["model"] |= {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    content["added_tokens"] = [byte_level.added_token(name, index, True) for index, name in enumerate(SPECIAL_TOKENS)]
    blank = {"pattern": {"String": " "}, "content": "\u2581"}
    content["normalizer"] = {
        "type": "Sequence",
        "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", **blank}],
    }
    content["pre_tokenizer"] = None
    begin, text = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, begin, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    content["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    return content


def write_llama_vocabulary(path: str | Path, directory: str | Path) -> Vocabulary:
    """Writes the tokenizer.bin at `path` as `tokenizer.json` and `tokenizer_config.json` into `directory`."""
    content = llama_content(*read_llama2c(path))
    Vocabulary(content, byte_level.digest_of(content)).save(directory)
    return Vocabulary.from_directory(directory)
