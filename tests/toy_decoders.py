"""Small models with the interface of `models.decoder_only` whose answers can be worked out, and a vocabulary."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Config:
    max_positions: int = 2048
    dtype: str = "float32"


class _Decoder:
    """What both have in common: rows keep to themselves, samples too, and the parameters are what decoding reads."""

    config = Config()

    def decoder_params(self, params):
        return params

    def grow_decoding(self, cache, max_length, *, num_beams=1):
        slots_BTK = cache["slots_BTK"]
        return {**cache, "slots_BTK": jnp.pad(slots_BTK, ((0, 0), (0, max_length - slots_BTK.shape[1]), (0, 0)))}

    def start_decoding(self, decoder, encoded, mask_BS, *, max_length, num_beams=1):
        slots_BTK = jnp.zeros((mask_BS.shape[0], max_length, num_beams), jnp.int32)
        return {"encoded": encoded, "slots_BTK": slots_BTK, "length_B": jnp.sum(mask_BS, axis=1)}

    def _own_past(self, cache, tokens_BK, position, ancestry_BKT):
        """(cache with the tokens in it, every sample's tokens so far [B, K, T], 0 behind `position`)."""
        slots_BTK = jax.lax.dynamic_update_slice(cache["slots_BTK"], tokens_BK[:, None], (0, position, 0))
        B, T, K = slots_BTK.shape
        own_BKT = jnp.broadcast_to(jnp.arange(K)[None, :, None], (B, K, T))
        time_11T = jnp.arange(T)[None, None]
        if ancestry_BKT is not None:
            own_BKT = jnp.where(time_11T < position, ancestry_BKT[:, :, :T], own_BKT)
        past_BKT = jnp.take_along_axis(slots_BTK, own_BKT.swapaxes(1, 2), axis=2).swapaxes(1, 2)
        return {**cache, "slots_BTK": slots_BTK}, jnp.where(time_11T <= position, past_BKT, 0)


@dataclasses.dataclass(frozen=True)
class Table(_Decoder):
    """Logits depend on every token before, and on its place: a row of a table, found by a sum over them.

    params: {"table_HV": float32}. `Table.logits_after` is the same on a plain list.
    """

    @staticmethod
    def weights(places):
        return 7 ** (places % 5) + places

    def prefill(self, params, tokens_BS, mask_BS):
        places_BS = jnp.cumsum(mask_BS, axis=1) - 1
        state_B = jnp.sum(jnp.where(mask_BS, tokens_BS * self.weights(places_BS), 0), axis=1)
        table_HV = params["table_HV"]
        return table_HV[state_B % table_HV.shape[0]], state_B, mask_BS

    def decode_step(self, decoder, cache, tokens_BK, position, ancestry_BKT=None):
        cache, past_BKT = self._own_past(cache, tokens_BK, position, ancestry_BKT)
        places_BT = cache["length_B"][:, None] + jnp.arange(past_BKT.shape[2])[None]
        state_BK = cache["encoded"][:, None] + jnp.sum(past_BKT * self.weights(places_BT)[:, None], axis=2)
        table_HV = decoder["table_HV"]
        return table_HV[state_BK % table_HV.shape[0]], cache

    @classmethod
    def logits_after(cls, params, tokens) -> np.ndarray:
        table_HV = np.asarray(params["table_HV"])
        places = np.arange(len(tokens))
        return table_HV[int(np.sum(np.asarray(tokens, np.int64) * cls.weights(places))) % len(table_HV)]

    @classmethod
    def log_probability(cls, params, prompt, tokens) -> float:
        """Of `tokens` behind the prompt."""
        tokens, total = list(tokens), 0.0
        for place, token in enumerate(tokens):
            logits_V = cls.logits_after(params, [*prompt, *tokens[:place]]).astype(np.float64)
            total += logits_V[token] - np.log(np.sum(np.exp(logits_V)))
        return total


@dataclasses.dataclass(frozen=True)
class Script(_Decoder):
    """Says what is written in a script, and must be asked for it.

    params: {"script_RJT": int32}: a prompt that begins with token r gets script_RJT[r, 0] where it does not ask for
    more, and script_RJT[r, j] behind the j-th opener, wherever that was fed. openers: ids; the first is j = 1.
    """

    openers: tuple[int, ...]
    vocab_size: int

    def prefill(self, params, tokens_BS, mask_BS):
        row_B = tokens_BS[:, 0]
        return self._say(params["script_RJT"][row_B, 0, 0]), row_B, mask_BS

    def _say(self, token):
        return 20.0 * jax.nn.one_hot(token, self.vocab_size)

    def decode_step(self, decoder, cache, tokens_BK, position, ancestry_BKT=None):
        cache, past_BKT = self._own_past(cache, tokens_BK, position, ancestry_BKT)
        time_11T = jnp.arange(past_BKT.shape[2])[None, None]
        is_opener_BKT = jnp.any(past_BKT[..., None] == jnp.asarray(self.openers)[None, None, None], axis=-1)
        is_opener_BKT = is_opener_BKT & (time_11T <= position)
        latest_BK = jnp.max(jnp.where(is_opener_BKT, time_11T, -1), axis=2)
        opener_BK = jnp.take_along_axis(past_BKT, jnp.maximum(latest_BK, 0)[..., None], axis=2)[..., 0]
        which_BK = jnp.argmax(opener_BK[..., None] == jnp.asarray(self.openers)[None, None], axis=-1) + 1
        which_BK = jnp.where(latest_BK >= 0, which_BK, 0)
        place_BK = jnp.where(latest_BK >= 0, position - latest_BK, position + 1)
        row_B1 = jnp.broadcast_to(cache["encoded"][:, None], which_BK.shape)
        script_RJT = decoder["script_RJT"]
        return self._say(script_RJT[row_B1, which_BK, jnp.minimum(place_BK, script_RJT.shape[2] - 1)]), cache


def script(lines: dict[int, list[list[int]]], rest: int) -> dict[str, Any]:
    """The parameters of a `Script`: {first token of the prompt: [answer without an opener, behind the first, ...]}."""
    rows, answers = max(lines) + 1, max(map(len, lines.values()))
    length = max(len(answer) for of_one in lines.values() for answer in of_one) + 1
    script_RJT = np.full((rows, answers, length), rest, np.int32)
    for row, of_one in lines.items():
        for j, answer in enumerate(of_one):
            script_RJT[row, j, : len(answer)] = answer
    return {"script_RJT": jnp.asarray(script_RJT)}


def byte_vocabulary(directory, num_masks=8):
    """CodeGen2's layout over single bytes: every text has one way to be written, and characters take several tokens."""
    from codegen2_jax.data import decoder_vocabularies

    size = 256 + 1 + 38 + 4 + 2 + num_masks
    return decoder_vocabularies.train_codegen_vocabulary([], size, num_masks, directory)
