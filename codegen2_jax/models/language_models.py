"""What the rest of the package knows of a model: pure functions over nested dictionaries of plain arrays.

Shapes: B batch, S source length, T target length, D width, V vocabulary, P prompt vectors, K beams.
"""

import dataclasses
import functools
import math
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp

from codegen2_jax.errors import UserError
from codegen2_jax.models.attention import MASKED, mask_bias
from codegen2_jax.models.layers import RMSNorm, Weight, accumulated, initialise
from codegen2_jax.models.placement import Constrain, placed_by
from codegen2_jax.models.t5 import T5, DecoderLayer, T5Config, stack_buckets

Params = dict[str, Any]
SLOTS = ("batch", "heads", "keys", "head_dim")  # of an encoder-decoder's cache: [B, N, S, H]


class LanguageModel:
    """What every model has, whatever its network; subclasses are frozen dataclasses with a `config`.

    They also have `constrain`, what lays out their activations (models/placement.py), None on one device.

    A subclass gives `_boxed`, the declaration of its weights, and `_apply`, one method of its network.
    """

    def init_params(self, key: jax.Array) -> Params:
        """Float32 parameters, drawn as the network declares them; jit-able."""
        return initialise(key, self._boxed)

    def param_axes(self) -> Params:
        """Same tree as `init_params`, every leaf the tuple of its logical axis names."""
        is_box = lambda leaf: isinstance(leaf, Weight)  # noqa: E731
        return jax.tree.map(lambda box: tuple(box.names), self._boxed, is_leaf=is_box)

    @functools.cached_property
    def param_shapes(self) -> Params:
        """Same tree as `init_params`, every leaf a jax.ShapeDtypeStruct; costs no memory."""
        return jax.eval_shape(self.init_params, jax.random.key(0))

    def parameters(self) -> int:
        """Number of parameters."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.param_shapes))

    def placed(self, x: jax.Array, *logical_axes: str) -> jax.Array:
        """x, laid out by the meaning of its axes."""
        return x if self.constrain is None else self.constrain(x, logical_axes)

    def logits(self, params: Params, batch, prompt_BPD=None, *, dropout_key=None) -> jax.Array:
        """Teacher-forced float32 logits_BTV of a batch, as `last_states` takes it."""
        return self.logits_of(params, self.last_states(params, batch, prompt_BPD, dropout_key=dropout_key))

    def logits_of(self, params: Params, x_BTD) -> jax.Array:
        """Float32 logits_BTV of states that `last_states` gave, or of some of them."""
        table_VD, bias_V = self.head_weights(params)
        logits_BTV = accumulated("btd,vd->btv", x_BTD, table_VD.astype(x_BTD.dtype))
        logits_BTV = logits_BTV if bias_V is None else logits_BTV + bias_V[None, None]
        return self.placed(logits_BTV, "batch", "length", "vocab")

    def embed(self, params: Params, tokens_BS) -> jax.Array:
        """Token embeddings x_BSD in the compute dtype."""
        return self._apply(params, tokens_BS, method="embed")


def laid_out(layers: Params, count: int, dtype: Any) -> list[Params]:
    """Stacked layers taken apart, matrices in the compute dtype; vectors (norms, biases) as they are."""
    apart = [jax.tree.map(itemgetter(i), layers) for i in range(count)]
    return [jax.tree.map(lambda w: w.astype(dtype) if w.ndim > 1 else w, layer) for layer in apart]


def pooled(x_BSD: jax.Array, mask_BS: jax.Array) -> jax.Array:
    """The mean of float32 states over true positions, [B, D], without gradient; 0 where there is none."""
    mask_BS1 = mask_BS[..., None].astype(jnp.float32)
    total_B1 = jnp.maximum(jnp.sum(mask_BS1, axis=1), 1.0)
    return jax.lax.stop_gradient(jnp.sum(x_BSD * mask_BS1, axis=1) / total_B1)


def last(x_BSD: jax.Array, mask_BS: jax.Array) -> jax.Array:
    """x_BD at every row's last true position."""
    last_B = x_BSD.shape[1] - 1 - jnp.argmax(mask_BS[:, ::-1], axis=1)
    return jnp.take_along_axis(x_BSD, last_B[:, None, None], axis=1)[:, 0]


@dataclasses.dataclass(frozen=True)
class EncoderDecoder(LanguageModel):
    """A T5 seen from outside. Hashable and without state, so it can be closed over by any jitted function."""

    config: T5Config
    constrain: Constrain | None = None

    def encode(self, params: Params, inputs_BS, inputs_mask_BS, prompt_BPD=None, *, dropout_key=None):
        """Encoder states and their mask: (encoded_BSD, mask_BS); a prompt comes first and S grows by P."""
        x_BSD, mask_BS = self.embed(params, inputs_BS), jnp.asarray(inputs_mask_BS, bool)
        if prompt_BPD is not None:
            x_BSD = jnp.concatenate([prompt_BPD.astype(x_BSD.dtype), x_BSD], axis=1)
            mask_BS = jnp.concatenate([jnp.ones(prompt_BPD.shape[:2], bool), mask_BS], axis=1)
        return self._apply(params, x_BSD, mask_BS, dropout_key, method="encode"), mask_BS

    def last_states(self, params: Params, batch, prompt_BPD=None, *, dropout_key=None) -> jax.Array:
        """What the head makes logits of: x_BTD in the compute dtype, teacher-forced on inputs_BS, inputs_mask_BS and
        decoder_inputs_BT.
        """
        inputs = (batch["inputs_BS"], batch["inputs_mask_BS"])
        encoded_BSD, mask_BS = self.encode(params, *inputs, prompt_BPD, dropout_key=dropout_key)
        x_BTD = self.embed(params, batch["decoder_inputs_BT"])
        x_BTD = self._apply(params, x_BTD, encoded_BSD, mask_BS, dropout_key, method="decode")
        return self._apply(params, x_BTD, method="before_head")

    def head_weights(self, params: Params) -> tuple[jax.Array, None]:
        """(table_VD, None): logits are `last_states` times the table, transposed."""
        return params["embedding" if self.config.tie_word_embeddings else "head"], None

    def last_state(self, params: Params, inputs_BS, inputs_mask_BS, *, dropout_key=None) -> jax.Array:
        """x_BD, the decoder's last state after it has read the source too, at every row's last true token.

        What a classifier reads (CodeT5, arXiv 2109.00859, section 3.3, after BART).
        """
        encoded_BSD, mask_BS = self.encode(params, inputs_BS, inputs_mask_BS, dropout_key=dropout_key)
        x_BTD = self.embed(params, inputs_BS)
        return last(self._apply(params, x_BTD, encoded_BSD, mask_BS, dropout_key, method="decode"), mask_BS)

    def check_pooling(self, pooling: str) -> None:
        """UserError for what `query` cannot pool by; known before there is any input."""
        if pooling not in ("mean", "first"):
            raise UserError(f"query pooling {pooling!r} means nothing for an encoder; choose 'mean' or 'first'.")

    def query(self, params: Params, inputs_BS, inputs_mask_BS, *, pooling: str = "mean") -> jax.Array:
        """query_BD float32 of the encoder's states, without prompt, dropout or gradient.

        pooling: "mean" over the true tokens, or "first", the state of the first token.

        Computed in float32 whatever the compute dtype, so that a stored query equals a recomputed one. Raises UserError
        for another pooling: the last state of an encoder stands for nothing in particular.
        """
        self.check_pooling(pooling)
        exact = dataclasses.replace(self, config=dataclasses.replace(self.config, dtype="float32"))
        encoded_BSD, mask_BS = exact.encode(params, inputs_BS, inputs_mask_BS)
        if pooling == "first":
            return jax.lax.stop_gradient(encoded_BSD[:, 0])
        return pooled(encoded_BSD, mask_BS)

    # ------------------------------------------------------------------------------------------------- decoding

    def decoder_params(self, params: Params) -> Params:
        """What decoding reads, laid out for it: layers apart, matrices in the compute dtype.

        Made once before the loop over positions: taken apart inside, every step would copy every weight.
        """
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        tables = [name for name in ("embedding", "head") if name in params]
        return {
            **{name: params[name].astype(dtype) for name in tables},
            "layers": laid_out(params["decoder"]["layers"], config.num_decoder_layers, dtype),
            "relative_bias": params["decoder"]["relative_bias"],
            "final_norm": params["decoder"]["final_norm"],
        }

    def start_decoding(self, decoder: Params, encoded_BSD, mask_BS, *, max_length: int, num_beams: int = 1):
        """The cache that `decode_step` carries, with room for `max_length` positions of `num_beams` beams per row.

        decoder: from `decoder_params`.
        """
        config = self.config
        B, dtype = encoded_BSD.shape[0], jnp.dtype(config.dtype)
        slots = jnp.zeros((B, config.num_heads, max_length * num_beams, config.head_dim), dtype)
        slots = self.placed(slots, *SLOTS)
        layers = []
        for weights in decoder["layers"]:
            k, v = DecoderLayer(config).apply({"params": weights}, encoded_BSD.astype(dtype), method="cross_heads")
            k, v = self.placed(k, *SLOTS), self.placed(v, *SLOTS)
            layers.append({"k": slots, "v": slots, "cross_k": k, "cross_v": v})
        return {"layers": tuple(layers), "cross_bias": mask_bias(mask_BS)}

    def grow_decoding(self, cache, max_length: int, *, num_beams: int = 1):
        """The same cache with room for `max_length` positions."""

        def grow(layer):
            extra = ((0, 0), (0, 0), (0, max_length * num_beams - layer["k"].shape[2]), (0, 0))
            return {**layer, **{name: self.placed(jnp.pad(layer[name], extra), *SLOTS) for name in ("k", "v")}}

        return {**cache, "layers": tuple(grow(layer) for layer in cache["layers"])}

    def decode_step(self, decoder: Params, cache, tokens_BK, position, ancestry_BKT=None):
        """float32 logits_BKV of the tokens at `position` (scalar), and the cache with that position written.

        decoder: from `decoder_params`. ancestry_BKT[b, k, t] is the beam slot in which row b's beam k finds its own
        position t < position (its newest token lies in its own slot; later values are ignored). None: beams never
        change places.
        """
        config, layer_apply = self.config, DecoderLayer(self.config).apply
        bias_BNKS = self._step_bias(decoder["relative_bias"], cache, tokens_BK.shape, position, ancestry_BKT)
        inputs = (position, bias_BNKS, cache["cross_bias"])
        x_BKD = self.embed(decoder, tokens_BK)
        layers = []
        for weights, layer in zip(decoder["layers"], cache["layers"], strict=True):
            x_BKD, layer = layer_apply({"params": weights}, x_BKD, layer, *inputs, method="step")
            layers.append(layer)
        norm = RMSNorm(config.layer_norm_epsilon, jnp.dtype(config.dtype))
        x_BKD = norm.apply({"params": decoder["final_norm"]}, x_BKD)
        return self._apply(decoder, x_BKD, method="head"), {**cache, "layers": tuple(layers)}

    def _step_bias(self, table_UN, cache, shape, position, ancestry_BKT):
        """Relative bias where a slot is the beam's own past, a large negative number elsewhere; S = T * K slots."""
        (B, K), (N, slots) = shape, cache["layers"][0]["k"].shape[1:3]
        T = slots // K
        slot_1K1, time_11T = jnp.arange(K)[None, :, None], jnp.arange(T)[None, None]
        own_BKT = jnp.broadcast_to(slot_1K1, (B, K, T))
        if ancestry_BKT is not None:
            own_BKT = jnp.where(time_11T < position, ancestry_BKT[:, :, :T], own_BKT)
        own_BKT = jnp.where(time_11T <= position, own_BKT, -1)
        visible_BKTK = own_BKT[..., None] == jnp.arange(K)[None, None, None]
        row = stack_buckets(self.config, T, bidirectional=False)[-1][::-1]  # bucket of each distance 0 .. T - 1
        bias_TN = table_UN[jnp.asarray(row)[jnp.maximum(position - jnp.arange(T), 0)]]
        bias_BNKTK = jnp.where(visible_BKTK[:, None], bias_TN.T[None, :, None, :, None], MASKED)
        return bias_BNKTK.reshape(B, N, K, T * K)

    # -------------------------------------------------------------------------------------------------- private

    @functools.cached_property
    def _boxed(self):
        """The declaration of every weight: shapes, axis names and standard deviations, no values."""
        tokens = jnp.zeros((1, 2), jnp.int32)
        init = T5(self.config).init
        return jax.eval_shape(init, jax.random.key(0), tokens, tokens == 0, tokens)["params"]

    def _apply(self, params, *args, method):
        with placed_by(self.constrain):
            return T5(self.config).apply({"params": params}, *args, method=method)
