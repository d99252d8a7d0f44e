"""Where a model's weights come from, and how a state is born.

Restore order of a run: its own checkpoint, else `init_from`, else from scratch ("random"). The first of the three is
the caller's; the other two are here.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from codegen2_jax.data.vocabulary import Vocabulary
from codegen2_jax.errors import UserError
from codegen2_jax.interop import huggingface
from codegen2_jax.models.language_models import EncoderDecoder
from codegen2_jax.models.t5 import SIZES, T5Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model, its weights as host arrays (None: to be initialised at random), its vocabulary, and where from."""

    model: EncoderDecoder
    params: Any
    vocabulary: Vocabulary
    vocabulary_directory: str
    digest: str
    start: Callable[[Any], Any] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Names a model: pretrained weights, or a configuration to start from scratch.

    Attributes:
      init_from: "nano_t5" (shipped), a directory in Hugging Face's layout, a Hub name, or "random".
      config: the architecture; required for "random"; otherwise it must agree with config.json where it is given.
      vocabulary: directory of the tokenizer's files; None: the directory of the weights.
      dtype: compute type, "float32" or "bfloat16"; parameters stay float32.
      dropout_rate: 0 to below 1. None keeps what config.json says; the shipped run files give 0.
      remat: "none" or "full" rematerialisation of each layer.
      start: what to make of freshly drawn parameters (a function of the tree, such as models/mimetic.py has), None to
        take them as drawn. Weights that are read from `init_from` are never changed.
    """

    init_from: str
    config: T5Config | None = None
    vocabulary: str | None = None
    dtype: str = "float32"
    dropout_rate: float | None = 0.0
    remat: str = "none"
    start: Callable[[Any], Any] | None = None

    def __post_init__(self):
        if self.init_from == "random" and (self.config is None or self.vocabulary is None):
            raise UserError(
                "INIT_FROM='random' starts from scratch and needs a config and a vocabulary; "
                "include a models/*.gin file that gives both, or set INIT_FROM to a directory."
            )

    def _configured(self, config: T5Config) -> T5Config:
        changes = {"dtype": self.dtype, "remat": self.remat}
        if self.dropout_rate is not None:
            changes["dropout_rate"] = self.dropout_rate
        return dataclasses.replace(config, **changes)

    def _check_architecture(self, found: T5Config, directory: Path) -> None:
        """A configuration given beside weights must be theirs; what only changes the computation may differ."""
        if self.config is None:
            return
        given, stored = dataclasses.asdict(self.config), dataclasses.asdict(found)
        for name in SIZES:
            if given[name] != stored[name]:
                raise UserError(
                    f"{name}={given[name]} in the configuration, {stored[name]} in {directory}/config.json; "
                    "leave the configuration out, or set INIT_FROM='random'."
                )

    def load(self) -> LoadedModel:
        """Reads what there is to read; the weights stay on the host."""
        if self.init_from == "random":
            directory = huggingface.resolve_directory(self.vocabulary)
            config, params, digest = self._configured(self.config), None, "random"
        else:
            weights = huggingface.resolve_directory(self.init_from)
            config, params = huggingface.load_t5(weights)
            self._check_architecture(config, weights)
            config, digest = self._configured(config), weights_digest(weights)
            directory = huggingface.resolve_directory(self.vocabulary) if self.vocabulary else weights
        vocabulary = Vocabulary.from_directory(directory)
        if vocabulary.size > config.vocab_size:
            raise UserError(
                f"the vocabulary in {directory} has {vocabulary.size} entries, the model {config.vocab_size}; "
                "set the model source's vocabulary to the directory that belongs to the weights."
            )
        return LoadedModel(
            model=EncoderDecoder(config),
            params=params,
            vocabulary=vocabulary,
            vocabulary_directory=str(directory),
            digest=digest,
            start=self.start,
        )


def weights_digest(directory: str | Path) -> str:
    """SHA-256 over the weight files of a directory, in name order."""
    digest = hashlib.sha256()
    for path in sorted(Path(directory).glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def place_params(loaded: LoadedModel, shardings: Any, *, seed: int) -> Any:
    """The model's parameters as device arrays, already sharded: leaf by leaf from the host, or born from a seed."""
    if loaded.params is None:

        def draw(key):
            params = loaded.model.init_params(key)
            return params if loaded.start is None else loaded.start(params)

        return jax.jit(draw, out_shardings=shardings)(jax.random.key(seed))
    return jax.tree.map(lambda value, sharding: jax.device_put(jnp.asarray(value), sharding), loaded.params, shardings)
