"""Where a model's weights come from, and how a state is born.

Restore order of a run: its own checkpoint, else `init_from`, else from scratch ("random"). The first of the three is
the caller's; the other two are here.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from codegen2_jax.data.vocabulary import Vocabulary
from codegen2_jax.errors import UserError
from codegen2_jax.interop import huggingface
from codegen2_jax.models import decoder_config, t5
from codegen2_jax.models.attention_kernels import Implementation
from codegen2_jax.models.decoder_config import DecoderConfig
from codegen2_jax.models.decoder_only import DecoderOnly
from codegen2_jax.models.language_models import EncoderDecoder, LanguageModel
from codegen2_jax.models.layers import Remat
from codegen2_jax.models.t5 import T5Config
from codegen2_jax.sharding.partitioning import Layout, put_whole, shardings

Config = T5Config | DecoderConfig


def check_seed(seed: int) -> None:
    """Refuses a seed that a JAX key cannot hold: it keeps 32 bits, so that another seed would silently be the same."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} is out of range; it must lie in [0, 2^32).")


def model_of(config: Config) -> LanguageModel:
    """The model of a configuration, by the configuration's class."""
    return EncoderDecoder(config) if isinstance(config, T5Config) else DecoderOnly(config)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model, its stored weights (None: to be initialised at random), its vocabulary, and where from."""

    model: LanguageModel
    weights: huggingface.ForeignModel | None
    vocabulary: Vocabulary | None
    vocabulary_directory: str
    digest: str
    start: Callable[[Any], Any] | None = None

    @functools.cached_property
    def params(self) -> Any:
        """All weights as one tree of float32 host arrays, or None; `place_params` needs less memory."""
        return None if self.weights is None else self.weights.params(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Names a model: pretrained weights, or a configuration to start from scratch.

    Attributes:
      init_from: "nano_t5" (shipped), a directory in Hugging Face's layout, a Hub name, or "random".
      config: the architecture; required for "random"; otherwise it must agree with config.json where it is given.
      vocabulary: directory of the tokenizer's files; None: the directory of the weights.
      dtype: compute type, "float32" or "bfloat16"; parameters stay float32.
      dropout_rate: 0 to below 1. None keeps what config.json says; the shipped run files give 0.
      remat: what of a layer is computed again in its backward pass: "none" but attention's scores, "full" all, "dots"
        and "dots_no_batch" all but matrix products (models/layers.py).
      attention: "xla", "cudnn", "splash" or "auto" (models/attention_kernels.py); a run checks it when it starts.
      mp_num: shards in a CodeGen's fused weights, where nothing beside them tells (interop/qkv_layout.py).
      prefix_lm: whether a decoder attends to a prefix in both directions; None keeps what its configuration says. The
        weights are the same either way.
      start: what to make of freshly drawn parameters (a function of the tree, such as models/mimetic.py has), None to
        take them as drawn. Weights that are read from `init_from` are never changed.
    """

    init_from: str
    config: T5Config | DecoderConfig | None = None
    vocabulary: str | None = None
    dtype: str = "float32"
    dropout_rate: float | None = 0.0
    remat: Remat = "none"
    attention: Implementation = "xla"
    mp_num: int | None = None
    prefix_lm: bool | None = None
    start: Callable[[Any], Any] | None = None

    def __post_init__(self):
        if self.init_from == "random" and (self.config is None or self.vocabulary is None):
            raise UserError(
                "INIT_FROM='random' starts from scratch and needs a config and a vocabulary; "
                "include a models/*.gin file that gives both, or set INIT_FROM to a directory."
            )

    def _configured(self, config: Config) -> Config:
        changes: dict[str, Any] = {"dtype": self.dtype, "remat": self.remat, "attention": self.attention}
        if self.dropout_rate is not None:
            changes["dropout_rate"] = self.dropout_rate
        if self.prefix_lm is not None:
            if isinstance(config, T5Config):
                raise UserError(f"prefix_lm={self.prefix_lm} is for decoders; an encoder sees both directions anyway.")
            changes["prefix_lm"] = self.prefix_lm
        return dataclasses.replace(config, **changes)

    def _check_architecture(self, found: Config, directory: Path) -> None:
        """A configuration given beside weights must be theirs; what only changes the computation may differ."""
        if self.config is None:
            return
        if type(self.config) is not type(found):
            raise UserError(
                f"the configuration is a {type(self.config).__name__}, {directory} holds a {type(found).__name__}; "
                "leave the configuration out, or set INIT_FROM='random'."
            )
        given, stored = dataclasses.asdict(self.config), dataclasses.asdict(found)
        for name in t5.SIZES if isinstance(found, T5Config) else decoder_config.SIZES:
            if given[name] != stored[name]:
                raise UserError(
                    f"{name}={given[name]} in the configuration, {stored[name]} in {directory}/config.json; "
                    "leave the configuration out, or set INIT_FROM='random'."
                )

    def without_weights(self, **changes: Any) -> LoadedModel:
        """The model alone, for a dry run: no weight is read, and no vocabulary, which may not be on this machine.

        changes: fields of the configuration that shall be others, such as num_layers.
        """
        if self.init_from == "random":
            config = self.config
        else:
            config = self._stored_config()
        model = model_of(dataclasses.replace(self._configured(config), **changes))
        return LoadedModel(model=model, weights=None, vocabulary=None, vocabulary_directory="", digest="", start=None)

    def _stored_config(self) -> Config:
        """That of the weights; where they are not on this machine, the one that is given."""
        try:
            directory = huggingface.resolve_directory(self.init_from)
        except UserError:
            if self.config is None:
                raise
            return self.config
        config = huggingface.open_model(directory, mp_num=self.mp_num).config
        self._check_architecture(config, directory)
        return config

    def load(self) -> LoadedModel:
        """Reads all but the values of the weights, which stay in their files until they are placed."""
        if self.init_from == "random":
            directory = huggingface.resolve_directory(self.vocabulary)
            config, weights, digest = self._configured(self.config), None, "random"
        else:
            place = huggingface.resolve_directory(self.init_from)
            weights = huggingface.open_model(place, mp_num=self.mp_num)
            self._check_architecture(weights.config, place)
            config, digest = self._configured(weights.config), weights_digest(place)
            directory = huggingface.resolve_directory(self.vocabulary) if self.vocabulary else place
        vocabulary = Vocabulary.from_directory(directory)
        if vocabulary.size > config.vocab_size:
            raise UserError(
                f"the vocabulary in {directory} has {vocabulary.size} entries, the model {config.vocab_size}; "
                "set the model source's vocabulary to the directory that belongs to the weights."
            )
        return LoadedModel(
            model=model_of(with_ids(config, vocabulary)),
            weights=weights,
            vocabulary=vocabulary,
            vocabulary_directory=str(directory),
            digest=digest,
            start=self.start,
        )


def with_ids(config: Config, vocabulary: Vocabulary) -> Config:
    """The configuration with the ids that it leaves open; a source and its target are parted by <sep>, or the end."""
    if isinstance(config, T5Config):
        return config
    sep_id = getattr(vocabulary, "sep_id", None)
    ids = {
        "bos_token_id": vocabulary.bos_id,
        "eos_token_id": vocabulary.eos_id,
        "pad_token_id": vocabulary.pad_id,
        "decoder_start_token_id": vocabulary.eos_id if sep_id is None else sep_id,
    }
    return dataclasses.replace(config, **{name: id for name, id in ids.items() if getattr(config, name) is None})


def weights_digest(directory: str | Path) -> str:
    """SHA-256 over the weight files of a directory, in name order."""
    digest = hashlib.sha256()
    paths = [path for pattern in ("*.safetensors", "*.bin") for path in Path(directory).glob(pattern)]
    for path in sorted(paths):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class PlacedModel:
    """A model whose weights lie on devices, ready to decode."""

    model: LanguageModel
    params: Any
    vocabulary: Vocabulary
    digest: str


def placed_on(loaded: LoadedModel, layout: Layout) -> PlacedModel:
    """The model with its weights, its activations and its cache laid out over a mesh."""
    model = dataclasses.replace(loaded.model, constrain=layout.constrain)
    lying = shardings(layout, model.param_axes(), model.param_shapes)
    return PlacedModel(model, place_params(loaded, lying, seed=0), loaded.vocabulary, loaded.digest)


def place_params(loaded: LoadedModel, lying: Any, *, seed: int) -> Any:
    """The model's parameters as device arrays, already sharded: born from a seed, or read leaf by leaf.

    The host holds one leaf at a time, so a model needs no more of its memory than its largest stacked weight.
    """
    if loaded.weights is None:

        def draw(key):
            params = loaded.model.init_params(key)
            return params if loaded.start is None else loaded.start(params)

        return jax.jit(draw, out_shardings=lying)(jax.random.key(seed))
    flat = flax.traverse_util.flatten_dict(lying)
    placed = {}
    for place, value in loaded.weights.leaves(np.float32):
        placed[place] = jax.block_until_ready(put_whole(flat[place], value))
    return flax.traverse_util.unflatten_dict(placed)
