"""Decoder-only models seen from outside: the functions of `language_models.EncoderDecoder`, and a prefill.

A batch is either packed documents (pretraining) or pairs of a source and a target (everything else). In a pair the
source is the prefix, `decoder_start_token_id` stands behind it, and the target follows; so prompts, pools, replay,
queries and decoding work on a decoder as they do on an encoder-decoder.

Shapes: B batch, S source length, T target or window length, D width, V vocabulary, P prompt vectors, K beams or
samples, G key heads, H head width, L layers.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from codegen2_jax.errors import UserError
from codegen2_jax.models import attention_kernels, rotary
from codegen2_jax.models.attention import MASKED, mask_bias
from codegen2_jax.models.attention_kernels import Visible
from codegen2_jax.models.decoder_config import DecoderConfig
from codegen2_jax.models.language_models import LanguageModel, Params, laid_out, last, pooled
from codegen2_jax.models.layers import accumulated, dropout, rematerialised, seeds, site, weight
from codegen2_jax.models.placement import Constrain, constrain, placed_by

SLOTS = ("batch", "kv_heads", "beam", "keys", "head_dim")  # of the cache: [B, G, K, T, H]


class Blocks(nn.Module):
    """All blocks, run by a scan over stacked parameters, and the final norm."""

    config: DecoderConfig

    def setup(self):
        scanned = nn.scan(
            rematerialised(self.config.layer(), self.config.remat, unrolled=self.config.unrolled),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=self.config.num_layers,
            unroll=self.config.num_layers if self.config.unrolled else 1,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        self.layers = scanned(self.config)
        self.final_norm = self.config.norm()

    def __call__(self, x_BTD, rotation, mask, dropout_key=None):
        """(x_BTD, (k_LBTGH, v_LBTGH))."""
        seeds_LS2 = None
        if dropout_key is not None and self.config.dropout_rate > 0.0:
            seeds_LS2 = seeds(dropout_key, 0, (self.config.num_layers, self.config.layer().SITES))
            x_BTD = dropout(x_BTD, site(seeds(dropout_key, 1, (1,)), 0), self.config.dropout_rate)
        x_BTD = constrain(x_BTD, "batch", "sequence", "features")
        x_BTD, keys_values = self.layers(x_BTD, seeds_LS2, rotation, mask)
        return self.final_norm(x_BTD), keys_values


class Decoder(nn.Module):
    """The whole network; its methods are applied one by one by `DecoderOnly`."""

    config: DecoderConfig

    def setup(self):
        config, axes = self.config, ("vocab", "embed")
        shape = (config.vocab_size, config.d_model)
        stds = config.stds
        table = weight(stds["embedding"], axes, truncated=config.truncates)
        self.embedding_VD = self.param("embedding", table, shape, jnp.float32)
        if not config.ties_embeddings:
            head = weight(stds["head"], axes, truncated=config.truncates)
            self.head_VD = self.param("head", head, shape, jnp.float32)
        if config.has_head_bias:
            self.head_bias_V = self.param("head_bias", weight(0.0, ("vocab",)), shape[:1], jnp.float32)
        self.decoder = Blocks(config)

    def embed(self, tokens_BT):
        return self.embedding_VD[tokens_BT].astype(self.config.dtype)

    def run(self, x_BTD, rotation, mask, dropout_key=None):
        return self.decoder(x_BTD, rotation, mask, dropout_key)

    def head(self, x_BTD):
        """float32 logits."""
        table_VD = (self.embedding_VD if self.config.ties_embeddings else self.head_VD).astype(self.config.dtype)
        logits_BTV = accumulated("btd,vd->btv", x_BTD, table_VD)
        return logits_BTV + self.head_bias_V[None, None] if self.config.has_head_bias else logits_BTV

    def __call__(self, tokens_BT, rotation, mask):
        return self.head(self.run(self.embed(tokens_BT), rotation, mask)[0])


@dataclasses.dataclass(frozen=True)
class DecoderOnly(LanguageModel):
    """A decoder seen from outside. Hashable and without state, so it can be closed over by any jitted function."""

    config: DecoderConfig
    constrain: Constrain | None = None
    split: attention_kernels.Split | None = None  # how a kernel of attention is cut among devices; None: there is one

    def last_states(self, params: Params, batch, prompt_BPD=None, *, dropout_key=None) -> jax.Array:
        """What the head makes logits of, teacher-forced: x_BTD in the compute dtype, for a batch of either form.

        Packed: tokens_BT, positions_BT, segments_BT (0 is padding), and bidirectional_BT for a prefix-LM.
        Pairs: inputs_BS, inputs_mask_BS, decoder_inputs_BT; the states are those of the decoder's positions.
        """
        if "tokens_BT" in batch:
            assert prompt_BPD is None, "a prompt stands before a source; packed documents have none"
            x_BTD = self.embed(params, batch["tokens_BT"])
            return self._run(params, x_BTD, batch["positions_BT"], self._packed(batch), dropout_key)[0]
        x_BSD, mask_BS = self._prefix(params, batch["inputs_BS"], batch["inputs_mask_BS"], prompt_BPD)
        x_BTD = self.embed(params, batch["decoder_inputs_BT"])
        prefix, target = x_BSD.shape[1], x_BTD.shape[1]
        # A target is padded at its end only, where causality hides the padding.
        valid_BT = jnp.pad(mask_BS, ((0, 0), (0, target)), constant_values=True)
        x_BTD = jnp.concatenate([x_BSD, x_BTD], axis=1)
        x_BTD, _ = self._run(params, x_BTD, _places(valid_BT), self._visible(valid_BT, prefix), dropout_key)
        return x_BTD[:, prefix:]

    def head_weights(self, params: Params) -> tuple[jax.Array, jax.Array | None]:
        """(table_VD, bias_V or None): logits are `last_states` times the table, transposed, plus the bias."""
        table_VD = params["embedding" if self.config.ties_embeddings else "head"]
        return table_VD, params["head_bias"] if self.config.has_head_bias else None

    def prefill(self, params: Params, tokens_BS, mask_BS, prompt_BPD=None):
        """One pass over whole prompts: (logits_BV float32 behind each row's last true token, encoded, mask_BS).

        encoded: keys and values of the prompt, for `start_decoding`. mask_BS: with the prompt's vectors in front.
        """
        x_BSD, mask_BS = self._prefix(params, tokens_BS, mask_BS, prompt_BPD)
        x_BSD, encoded = self._read(params, x_BSD, mask_BS)
        return self._apply(params, last(x_BSD, mask_BS)[:, None], method="head")[:, 0], encoded, mask_BS

    def encode(self, params: Params, inputs_BS, inputs_mask_BS, prompt_BPD=None):
        """The source as keys and values for `start_decoding`, and its mask: (encoded, mask_BS)."""
        x_BSD, mask_BS = self._prefix(params, inputs_BS, inputs_mask_BS, prompt_BPD)
        return self._read(params, x_BSD, mask_BS)[1], mask_BS

    def check_pooling(self, pooling: str) -> None:
        """UserError for what `query` cannot pool by; known before there is any input."""
        if pooling not in ("mean", "last"):
            raise UserError(f"query pooling {pooling!r} means nothing for a decoder; choose 'mean' or 'last'.")

    def query(self, params: Params, inputs_BS, inputs_mask_BS, *, pooling: str = "mean") -> jax.Array:
        """query_BD float32 of the last states of the source, without prompt, dropout or gradient.

        pooling: "mean" over the true tokens, or "last", the state of the last one. Computed in float32 whatever the
        compute dtype, so that a stored query equals a recomputed one. Raises UserError for "first": that state has
        seen nothing but itself.
        """
        self.check_pooling(pooling)
        exact = dataclasses.replace(
            self, config=dataclasses.replace(self.config, dtype="float32", attention="xla"), split=None
        )
        x_BSD, mask_BS = exact._prefix(params, inputs_BS, inputs_mask_BS, None)
        x_BSD, _ = exact._read(params, x_BSD, mask_BS)
        if pooling == "last":
            return jax.lax.stop_gradient(last(x_BSD, mask_BS))
        return pooled(x_BSD, mask_BS)

    def last_state(self, params: Params, inputs_BS, inputs_mask_BS, *, dropout_key=None) -> jax.Array:
        """x_BD, what the final norm gives at every row's last true token; what a classifier reads."""
        x_BSD, mask_BS = self._prefix(params, inputs_BS, inputs_mask_BS, None)
        visible = self._visible(mask_BS, x_BSD.shape[1])
        return last(self._run(params, x_BSD, _places(mask_BS), visible, dropout_key)[0], mask_BS)

    # ------------------------------------------------------------------------------------------------- decoding

    def decoder_params(self, params: Params) -> Params:
        """What decoding reads, laid out for it: layers apart, matrices in the compute dtype.

        Made once before the loop over positions: taken apart inside, every step would copy every weight.
        """
        dtype, blocks = jnp.dtype(self.config.dtype), params["decoder"]
        tables = {name: params[name].astype(dtype) for name in ("embedding", "head") if name in params}
        rest = {name: params[name] for name in ("head_bias",) if name in params}
        layers = laid_out(blocks["layers"], self.config.num_layers, dtype)
        return {**tables, **rest, "layers": layers, "final_norm": blocks["final_norm"]}

    def start_decoding(self, decoder: Params, encoded, mask_BS, *, max_length: int, num_beams: int = 1):
        """The cache that `decode_step` carries, with room for `max_length` positions of `num_beams` beams per row.

        encoded, mask_BS: from `prefill` or `encode`. All beams of a row share its prefix.
        """
        stacked = ("layers", "batch", "kv_heads", "keys", "head_dim")
        k_LBGSH, v_LBGSH = (self.placed(x, *stacked) for x in encoded)
        _, B, G, _, H = k_LBGSH.shape
        slots = self.placed(jnp.zeros((B, G, num_beams, max_length, H), k_LBGSH.dtype), *SLOTS)
        layers = tuple(
            {"k": slots, "v": slots, "prefix_k": k_LBGSH[i], "prefix_v": v_LBGSH[i]}
            for i in range(self.config.num_layers)
        )
        return {"layers": layers, "prefix_bias": mask_bias(mask_BS)[:, None], "length_B": jnp.sum(mask_BS, axis=1)}

    def grow_decoding(self, cache, max_length: int, *, num_beams: int = 1):
        """The same cache with room for `max_length` positions of each of its beams."""
        del num_beams  # the cache knows

        def grow(slots):
            slots = jnp.pad(slots, ((0, 0), (0, 0), (0, 0), (0, max_length - slots.shape[3]), (0, 0)))
            return self.placed(slots, *SLOTS)

        layers = tuple({**layer, "k": grow(layer["k"]), "v": grow(layer["v"])} for layer in cache["layers"])
        return {**cache, "layers": layers}

    def decode_step(self, decoder: Params, cache, tokens_BK, position, ancestry_BKT=None):
        """float32 logits_BKV of the tokens at `position`, and the cache with that position written.

        position: int32 scalar, 0 for the first token behind the prefix. ancestry_BKT[b, k, t]: the slot in which row
        b's beam k finds its own position t < position; None: beams never change places.
        """
        config = self.config
        bias = self._step_bias(*cache["layers"][0]["k"].shape[2:4], position, ancestry_BKT)
        places_BK = jnp.broadcast_to(cache["length_B"][:, None] + position, tokens_BK.shape)
        turned = rotary.rotation(places_BK, config.rotary_dim, config.rope_theta)
        x_BKD, layers, apply = self.embed(decoder, tokens_BK), [], config.layer()(config).apply
        inputs = (position, bias, cache["prefix_bias"])
        for weights, layer in zip(decoder["layers"], cache["layers"], strict=True):
            x_BKD, layer = apply({"params": weights}, x_BKD, turned, layer, *inputs, method="step")
            layers.append(layer)
        x_BKD = config.norm().apply({"params": decoder["final_norm"]}, x_BKD)
        return self._apply(decoder, x_BKD, method="head"), {**cache, "layers": tuple(layers)}

    def _step_bias(self, K, length, position, ancestry_BKT):
        """0 where a slot is the beam's own past or present, a large negative number elsewhere: [B, 1, 1, K, K * T].

        Without an ancestry a beam's slots are known, and the bias is one of time alone: [1, 1, 1, 1, T].
        """
        time_11T = jnp.arange(length)[None, None]
        if ancestry_BKT is None:
            return jnp.where(time_11T <= position, 0.0, MASKED).astype(jnp.float32)[None, None]
        own_BKT = jnp.broadcast_to(jnp.arange(K)[None, :, None], (1, K, length))
        own_BKT = jnp.where(time_11T < position, ancestry_BKT[:, :, :length], own_BKT)
        own_BKT = jnp.where(time_11T <= position, own_BKT, -1)
        visible_BKKT = own_BKT[:, :, None] == jnp.arange(K)[None, None, :, None]
        bias_BKS = jnp.where(visible_BKKT, 0.0, MASKED).reshape(own_BKT.shape[0], K, K * length)
        return bias_BKS[:, None, None].astype(jnp.float32)

    # -------------------------------------------------------------------------------------------------- private

    def _prefix(self, params, tokens_BS, mask_BS, prompt_BPD):
        """Embeddings of a source with the prompt's vectors in front, and their mask."""
        x_BSD, mask_BS = self.embed(params, tokens_BS), jnp.asarray(mask_BS, bool)
        if prompt_BPD is not None:
            x_BSD = jnp.concatenate([prompt_BPD.astype(x_BSD.dtype), x_BSD], axis=1)
            mask_BS = jnp.concatenate([jnp.ones(prompt_BPD.shape[:2], bool), mask_BS], axis=1)
        return x_BSD, mask_BS

    def _read(self, params, x_BSD, mask_BS):
        """Last states of a prefix, and its keys and values as decoding reads them, each [L, B, G, S, H]."""
        x_BSD, (k_LBSGH, v_LBSGH) = self._run(params, x_BSD, _places(mask_BS), self._visible(mask_BS, x_BSD.shape[1]))
        return x_BSD, (k_LBSGH.swapaxes(2, 3), v_LBSGH.swapaxes(2, 3))

    def _run(self, params, x_BTD, positions_BT, visible: Visible, dropout_key=None):
        config, length = self.config, x_BTD.shape[1]
        if length > config.max_positions and not config.allow_extrapolation:
            raise UserError(
                f"a sequence of {length} positions exceeds the model's max_positions={config.max_positions}; cut it, "
                "or set allow_extrapolation=True."
            )
        turned = rotary.rotation(positions_BT, config.rotary_dim, config.rope_theta)
        mask = attention_kernels.prepared(config.attention, visible)
        with attention_kernels.split_by(self.split):
            return self._apply(params, x_BTD, turned, mask, dropout_key, method="run")

    def _visible(self, valid_BT, prefix: int) -> Visible:
        """Attention of one document a row, whose first `prefix` places are the source."""
        return Visible(valid_BT, prefix=prefix if self.config.prefix_lm else 0)

    def _packed(self, batch) -> Visible:
        return Visible(
            batch["segments_BT"] > 0,
            segments_BT=batch["segments_BT"],
            bidirectional_BT=batch["bidirectional_BT"] if self.config.prefix_lm else None,
            across=self.config.attend_across_documents,
            ends_padded=True,
        )

    @functools.cached_property
    def _boxed(self):
        tokens = jnp.zeros((1, 2), jnp.int32)
        turned = rotary.rotation(tokens, self.config.rotary_dim)
        init = Decoder(dataclasses.replace(self.config, attention="xla")).init
        return jax.eval_shape(init, jax.random.key(0), tokens, turned, jnp.zeros((1, 1, 2, 2)))["params"]

    def _apply(self, params, *args, method):
        with placed_by(self.constrain):
            return Decoder(self.config).apply({"params": params}, *args, method=method)


def _places(mask_BT):
    """Position of each true token in its row, wherever the padding stands: int32[B, T]."""
    return jnp.maximum(jnp.cumsum(mask_BT, axis=1) - 1, 0).astype(jnp.int32)
