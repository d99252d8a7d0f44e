"""The model that the package carries: its size, its tokenizer, and that it never saw what it is tested on."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import codegen2_jax
from codegen2_jax.data.sources import split_of, standard_library
from codegen2_jax.data.vocabulary import Vocabulary
from codegen2_jax.interop import huggingface
from codegen2_jax.models.language_models import EncoderDecoder

DIRECTORY = Path(codegen2_jax.__file__).parent / "pretrained" / "nano_t5"
MAX_BYTES = 16_000_000


@pytest.fixture(scope="module")
def listed():
    """(digests of the files it was pretrained on, digests of the files that were held out)."""
    lines = (DIRECTORY / "corpus.sha256").read_text(encoding="utf-8").splitlines()
    held_out = {line.split()[1] for line in lines if line.startswith("held-out ")}
    return {line.split()[0] for line in lines if not line.startswith("held-out ")}, held_out


def test_no_file_behind_a_valid_or_test_split_was_trained_on(listed):
    trained_on, held_out = listed
    assert len(trained_on) > 1000 and held_out
    assert not trained_on & held_out
    evaluated = {file.digest for file in standard_library() if split_of(file.path) != "train"}
    assert evaluated and not evaluated & trained_on


def test_weights_are_small_bfloat16_and_finite():
    weights = DIRECTORY / "model.safetensors"
    assert weights.stat().st_size <= MAX_BYTES
    tensors = load_file(weights)
    assert {str(value.dtype) for value in tensors.values()} == {"bfloat16"}
    assert all(np.isfinite(value.astype(np.float32)).all() for value in tensors.values())


def test_the_card_says_what_the_files_say():
    config, _ = huggingface.load(DIRECTORY)
    record = json.loads((DIRECTORY / "pretraining.json").read_text(encoding="utf-8"))
    card = (DIRECTORY / "README.md").read_text(encoding="utf-8")
    assert EncoderDecoder(config).parameters() == record["parameters"]
    assert f"{record['parameters']:,}" in card and f"{record['steps']:,} steps" in card
    for name, loss in record["valid_losses_nats_per_token"].items():
        assert f"| {name} | {loss:.2f} |" in card, name


def test_the_vocabulary_fits_and_writes_code_back():
    config, _ = huggingface.load(DIRECTORY)
    vocabulary = Vocabulary.from_directory(DIRECTORY)
    assert vocabulary.size == config.vocab_size == 6000 and vocabulary.num_sentinels == 100
    text = "def f(x):\n    return {'naïve': x ** 2}  # ½\n"
    assert vocabulary.decode(vocabulary.encode(text)) == text
