"""What tests of decoder data share."""

import json
from pathlib import Path

import pytest

from codegen2_jax.data.decoder_vocabularies import train_codegen_vocabulary


@pytest.fixture(scope="session")
def library_text():
    """Some Python of the standard library."""
    return "\n".join(Path(part.__file__).read_text(encoding="utf-8") for part in (json, json.decoder, json.encoder))


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory, library_text):
    """A small vocabulary of CodeGen2's layout."""
    return train_codegen_vocabulary([library_text], 1000, 400, tmp_path_factory.mktemp("vocabulary"))
