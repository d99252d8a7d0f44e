"""Damaged tokenizer files are one line, whatever the library makes of them."""

import json
import struct

import pytest

from codegen2_jax.data.llama_vocabulary import read_llama2c
from codegen2_jax.data.vocabulary import Vocabulary
from codegen2_jax.errors import UserError

PAIR = {"vocab.json": '{"a": 0, "<|endoftext|>": 1}', "merges.txt": ""}
END = {"<|endoftext|>": 0, "a": 1}


def bpe(vocab, merges=(), added=()):
    return json.dumps({"model": {"type": "BPE", "vocab": vocab, "merges": merges}, "added_tokens": added})


DAMAGED = {
    "no table": {"tokenizer.json": '{"model": {"type": "BPE"}}'},
    "a list": {"tokenizer.json": "[]"},
    "nested": {"tokenizer.json": "[" * 100_000},
    "empty": {"tokenizer.json": bpe({})},
    "unknown merges": {"tokenizer.json": bpe(END, [["a", "zz"]])},
    "ids as text": {"tokenizer.json": bpe({"<|endoftext|>": "0", "a": 1})},
    "an id beyond": {"tokenizer.json": bpe({"<|endoftext|>": 0, "a": 2**40})},
    "no content": {"tokenizer.json": bpe(END, [], [{"id": 1}])},
    "bytes": {**PAIR, "merges.txt": b"\xff\xfe a"},
    "three in a merge": {**PAIR, "merges.txt": "a b c\n"},
    "a list of tokens": {**PAIR, "vocab.json": "[1]"},
    "configured by a list": {**PAIR, "tokenizer_config.json": "[]"},
    "masks": {**PAIR, "tokenizer_config.json": '{"codegen_layout": {"family": "codegen2", "num_masks": "x"}}'},
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_tokenizer_is_one_line(tmp_path, name):
    for file, content in DAMAGED[name].items():
        (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        Vocabulary.from_directory(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_piece_of_negative_length_ends(tmp_path):
    (tmp_path / "tokenizer.bin").write_bytes(struct.pack("<ifi", 1, 0.0, -8))
    with pytest.raises(UserError, match="a piece of -8 bytes"):
        read_llama2c(tmp_path / "tokenizer.bin")
