"""Samples: K continuations of each of B prompts at once, which share their prompt's cache.

The device works in chunks of positions, so that the host can read the texts between two chunks and stop the samples in
which a stop string stands. Takes any model with `decoder_params`, `start_decoding`, `decode_step` and `grow_decoding`,
and with `prefill` (a decoder) or `encode` (an encoder-decoder).

Shapes: B batch, K samples, S prompt length, V vocabulary, C positions of a chunk, J answers.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from codegen2_jax.errors import NonFiniteError

CHUNK = 32  # positions between two looks of the host
FIRST_ROOM = 4 * CHUNK  # positions that a cache has room for at first
NOTHING = -1  # in place of a token, where a sample had ended
PREFIX = 64  # largest logits among which the last that is kept is looked for first
BLOCK = 256  # tokens whose probabilities are summed at once to find the place of a draw


def rooms(max_length: int) -> tuple[int, ...]:
    """Cache lengths to run through, growing fourfold, since each is a program; the last holds all that is ever fed."""
    lengths = [max(1, min(FIRST_ROOM, max_length - 1))]
    while lengths[-1] < max_length - 1:
        lengths.append(min(4 * lengths[-1], max_length - 1))
    return tuple(lengths)


# --------------------------------------------------------------------------------------------------------- one token


def choose(logits_BKV, uniform_BK, *, temperature=None, top_k=None, top_p=None) -> tuple[jax.Array, jax.Array]:
    """The next token of every sample and its log-probability under the model: (token_BK int32, log_prob_BK float32).

    temperature divides the logits first, then the top_k tokens are kept, then of these the top_p part. None switches
    each off, and no temperature is the likeliest token. The log-probability is that of the logits as they came.

    uniform_BK: float32 in [0, 1), the place in the distribution, tokens in the order of their ids. One number a sample:
    noise on every logit would cost more than the rest.
    """
    if temperature is None:
        token_BK = jnp.argmax(logits_BKV, axis=-1)
    else:
        token_BK = _at(jax.nn.softmax(keep(logits_BKV / temperature, top_k=top_k, top_p=top_p), axis=-1), uniform_BK)
    token_BK = token_BK.astype(jnp.int32)
    chosen_BK1 = jnp.take_along_axis(jax.nn.log_softmax(logits_BKV, axis=-1), token_BK[..., None], axis=-1)
    return token_BK, chosen_BK1[..., 0]


def _at(probs_BKV, uniform_BK):
    """The first token up to which the probabilities sum to more than `uniform_BK` of all.

    Sums of blocks first, then the one block's tokens, so that the vocabulary is read once. Never a token of probability
    0, even where sums round to less than the target, or a running sum grows by rounding alone.
    """
    B, K, V = probs_BKV.shape
    blocks = -(-V // BLOCK)
    probs_BKNM = jnp.pad(probs_BKV, ((0, 0), (0, 0), (0, blocks * BLOCK - V))).reshape(B, K, blocks, BLOCK)
    sums_BKN = jnp.sum(probs_BKNM, axis=-1)
    target_BK = uniform_BK * jnp.sum(sums_BKN, axis=-1)
    block_BK, before_BK = _crossing(sums_BKN, target_BK)
    inside_BKM = jnp.take_along_axis(probs_BKNM, block_BK[..., None, None], axis=2)[:, :, 0]
    return block_BK * BLOCK + _crossing(inside_BKM, target_BK - before_BK)[0]


def _crossing(parts_BKN, target_BK):
    """(the first part above 0 at whose end the running sum exceeds the target, the sum before it); else the last."""
    running_BKN = jnp.cumsum(parts_BKN, axis=-1)
    positive_BKN = parts_BKN > 0
    over_BKN = positive_BKN & (running_BKN > target_BK[..., None])
    last_BK = parts_BKN.shape[-1] - 1 - jnp.argmax(positive_BKN[..., ::-1], axis=-1)
    index_BK = jnp.where(jnp.any(over_BKN, axis=-1), jnp.argmax(over_BKN, axis=-1), last_BK)
    own_BK, end_BK = (
        jnp.take_along_axis(array_BKN, index_BK[..., None], axis=-1)[..., 0] for array_BKN in (parts_BKN, running_BKN)
    )
    return index_BK, end_BK - own_BK


def keep(logits_BKV, *, top_k=None, top_p=None) -> jax.Array:
    """The logits, minus infinity where a token is not kept; top_p is measured on what top_k keeps.

    top_k: the k largest. top_p: the fewest likeliest tokens whose probabilities sum to at least top_p (Holtzman et al.
    2020). Tokens as likely as the last one that is kept are kept too: nothing depends on the vocabulary's order.

    The PREFIX largest logits, which are found in one pass, nearly always hold the last one that is kept. Rows in which
    they do not are bisected; that is only computed when a batch has such a row, and changes nothing in the others.
    """
    if top_k is None and top_p is None:
        return logits_BKV
    B, K, V = logits_BKV.shape
    prefix_BKP = jax.lax.top_k(logits_BKV.reshape(B * K, V), min(PREFIX, V))[0].reshape(B, K, -1)
    P = prefix_BKP.shape[-1]
    if top_k is not None:
        last_BK1 = prefix_BKP[..., jnp.clip(jnp.asarray(top_k, jnp.int32), 1, P) - 1][..., None]
        enough = lambda kept_BKV: jnp.sum(kept_BKV, -1, keepdims=True) >= top_k  # noqa: E731
        cut_BK1 = _cut(logits_BKV, last_BK1, jnp.broadcast_to(top_k <= P, last_BK1.shape), enough)
        logits_BKV, prefix_BKP = (jnp.where(x >= cut_BK1, x, -jnp.inf) for x in (logits_BKV, prefix_BKP))
    if top_p is not None:
        log_total_BK1 = jax.nn.logsumexp(logits_BKV, axis=-1, keepdims=True)
        reached_BKP = jnp.cumsum(jnp.exp(prefix_BKP - log_total_BK1), axis=-1) >= top_p
        last_BK1 = jnp.take_along_axis(prefix_BKP, jnp.argmax(reached_BKP, axis=-1)[..., None], axis=-1)
        mass = lambda kept_BKV: jnp.sum(jnp.exp(logits_BKV - log_total_BK1) * kept_BKV, -1, keepdims=True)  # noqa: E731
        enough = lambda kept_BKV: mass(kept_BKV) >= top_p  # noqa: E731
        cut_BK1 = _cut(logits_BKV, last_BK1, jnp.any(reached_BKP, axis=-1, keepdims=True), enough)
        logits_BKV = jnp.where(logits_BKV >= cut_BK1, logits_BKV, -jnp.inf)
    return logits_BKV


def _cut(values_BKV, last_BK1, is_found_BK1, enough):
    """The smallest value that is kept: `last_BK1` where it was found, else by bisection."""
    return jax.lax.cond(
        jnp.all(is_found_BK1),
        lambda: last_BK1,
        lambda: jnp.where(is_found_BK1, last_BK1, _bisected(values_BKV, enough)),
    )


def _bisected(values_BKV, enough):
    """The largest cut, float32_BK1, for which `enough(values_BKV >= cut) -> bool_BK1` holds, else the least value.

    Bisects the 2^32 float32 values: 32 passes, whatever the vocabulary.
    """
    bits_BKV = jax.lax.bitcast_convert_type(values_BKV, jnp.int32)
    ordered_BKV = jnp.where(bits_BKV < 0, bits_BKV ^ 0x7FFFFFFF, bits_BKV)  # integers in the order of the floats

    def halve(_, bounds):
        low_BK1, high_BK1 = bounds
        middle_BK1 = (low_BK1 & high_BK1) + ((low_BK1 ^ high_BK1) >> 1)  # their mean, without an overflow
        holds_BK1 = enough(ordered_BKV >= middle_BK1)
        return jnp.where(holds_BK1, middle_BK1, low_BK1), jnp.where(holds_BK1, high_BK1, middle_BK1)

    bounds = (jnp.min(ordered_BKV, -1, keepdims=True), jnp.max(ordered_BKV, -1, keepdims=True) + 1)
    low_BK1, _ = jax.lax.fori_loop(0, 32, halve, bounds)
    return jax.lax.bitcast_convert_type(jnp.where(low_BK1 < 0, low_BK1 ^ 0x7FFFFFFF, low_BK1), jnp.float32)


# -------------------------------------------------------------------------------------------------------- the device


class Prefix(NamedTuple):
    """Prompts as decoding reads them. logits_BV: behind their last tokens; None for an encoder-decoder."""

    logits_BV: jax.Array | None
    encoded: Any
    mask_BS: jax.Array


class Rules(NamedTuple):
    """What is no draw: where a sample ends, and which tokens are put in. All arrays.

    A sample ends with a stop id, with `separator` when its last answer is closed, or after `max_new_tokens` draws.
    openers_BJ is the token that opens each answer, NOTHING behind a row's last: the first stands at the very beginning,
    the next behind each separator. J = 0: the first token is drawn. Openers are no draws.
    """

    stop_ids: jax.Array
    separator: jax.Array
    openers_BJ: jax.Array
    max_new_tokens: jax.Array


class Draws(NamedTuple):
    """How tokens are drawn; see `choose`. Each position of a sample makes a number of its own out of its key."""

    keys_BK: jax.Array
    temperature: jax.Array | None
    top_k: jax.Array | None
    top_p: jax.Array | None


class _State(NamedTuple):
    position: jax.Array  # of the newest token, which is fed next
    token_BK: jax.Array
    drawn_BK: jax.Array
    answer_BK: jax.Array  # the number of the answer that is being written
    done_BK: jax.Array
    cache: Any


def draws(prompt_B, sample_K, *, seed: int, temperature: float, top_k: int, top_p: float) -> Draws:
    """How the samples of these numbers are drawn. temperature 0 is greedy, top_k 0 and top_p 1 keep everything.

    The key of a sample is made of the seed, its prompt's number and its own, so it does not depend on its batch.
    """
    sampled = temperature > 0
    return Draws(
        _keys(jax.random.key(seed), jnp.asarray(prompt_B, jnp.int32), jnp.asarray(sample_K, jnp.int32)),
        jnp.float32(temperature) if sampled else None,
        jnp.int32(top_k) if sampled and top_k else None,
        jnp.float32(top_p) if sampled and top_p < 1 else None,
    )


@jax.jit
def _uniforms(keys_BK, first):
    """uniform_BKC for the tokens at the positions from `first` on, each made of its sample's key and its position."""
    draw = lambda key, position: jax.random.uniform(jax.random.fold_in(key, position))  # noqa: E731
    positions_C = first + jnp.arange(CHUNK)
    return jax.vmap(jax.vmap(lambda key: jax.vmap(lambda position: draw(key, position))(positions_C)))(keys_BK)


@jax.jit
def _keys(key, prompt_B, sample_K):
    fold = jax.random.fold_in
    return jax.vmap(lambda prompt: jax.vmap(lambda sample: fold(fold(key, prompt), sample))(sample_K))(prompt_B)


@functools.partial(jax.jit, static_argnames="model")
def lay_out(model, params):
    """What decoding reads of the parameters; once for all batches."""
    return model.decoder_params(params)


@functools.partial(jax.jit, static_argnames="model")
def read(model, params, tokens_BS, mask_BS) -> Prefix:
    """The prompts, in one pass."""
    if hasattr(model, "prefill"):
        return Prefix(*model.prefill(params, tokens_BS, mask_BS))
    return Prefix(None, *model.encode(params, tokens_BS, mask_BS))


def _advanced(state, logits_BKV, position, uniform_BK, rules, how):
    """The state with one more token at `position`, and what was put down: (state, token_BK, log_prob_BK)."""
    filters = {"temperature": how.temperature, "top_k": how.top_k, "top_p": how.top_p}
    token_BK, log_prob_BK = choose(logits_BKV, uniform_BK, **filters)
    is_draw_BK, answer_BK = jnp.ones_like(state.done_BK), state.answer_BK
    B, J = rules.openers_BJ.shape
    answers_B1 = jnp.sum(rules.openers_BJ != NOTHING, axis=1, keepdims=True)
    if J:
        is_draw_BK = state.token_BK != rules.separator
        answer_BK = jnp.where(is_draw_BK | state.done_BK, answer_BK, answer_BK + 1)
        opener_BK = jnp.take_along_axis(rules.openers_BJ, jnp.minimum(answer_BK, J - 1), axis=1)
        token_BK = jnp.where(is_draw_BK, token_BK, opener_BK)
    drawn_BK = state.drawn_BK + is_draw_BK
    is_stop_BK = jnp.any(token_BK[..., None] == rules.stop_ids[None, None], axis=-1)
    ends_BK = is_stop_BK | (drawn_BK >= rules.max_new_tokens)
    ends_BK = ends_BK | ((token_BK == rules.separator) & (answer_BK + 1 >= answers_B1))
    put_BK = jnp.where(state.done_BK, NOTHING, token_BK)
    log_prob_BK = jnp.where(is_draw_BK & ~state.done_BK, log_prob_BK, 0.0)
    token_BK = jnp.where(state.done_BK, state.token_BK, token_BK)
    done_BK = state.done_BK | ends_BK
    return _State(position, token_BK, drawn_BK, answer_BK, done_BK, state.cache), put_BK, log_prob_BK


@jax.jit
def _first(logits_BV, idle_BK, uniform_BK, rules, how):
    """The first token of every sample: (state without a cache, token_BK1, log_prob_BK1)."""
    B, K = idle_BK.shape
    none_BK = jnp.zeros((B, K), jnp.int32)
    state = _State(jnp.int32(0), none_BK, none_BK, none_BK, idle_BK, None)
    if rules.openers_BJ.shape[1]:
        state = state._replace(token_BK=jnp.broadcast_to(rules.openers_BJ[:, :1], (B, K)))
        put_BK, log_prob_BK = jnp.where(idle_BK, NOTHING, state.token_BK), jnp.zeros((B, K), jnp.float32)
    else:
        logits_BKV = jnp.broadcast_to(logits_BV[:, None], (B, K, logits_BV.shape[-1]))
        state, put_BK, log_prob_BK = _advanced(state, logits_BKV, state.position, uniform_BK, rules, how)
    return state, put_BK[..., None], log_prob_BK[..., None]


@functools.partial(jax.jit, static_argnames=("model", "length", "num_samples"))
def _start(model, decoder, prefix, length, num_samples):
    arguments = (decoder, prefix.encoded, prefix.mask_BS)
    return model.start_decoding(*arguments, max_length=length, num_beams=num_samples)


@functools.partial(jax.jit, static_argnames="model", donate_argnames="state")
def _continue(model, decoder, state, stopped_BK, until, uniform_BKC, rules, how):
    """Feeds positions below `until`, at most CHUNK: (state, token_BKC, log_prob_BKC, whether all have ended)."""
    B, K = state.token_BK.shape
    first = state.position

    def unfinished(carry):
        return (carry[0].position < until) & ~jnp.all(carry[0].done_BK)

    def body(carry):
        state, tokens_BKC, log_probs_BKC = carry
        logits_BKV, cache = model.decode_step(decoder, state.cache, state.token_BK, state.position)
        column = state.position - first
        state, uniform_BK = state._replace(cache=cache), uniform_BKC[..., column]
        state, put_BK, log_prob_BK = _advanced(state, logits_BKV, state.position + 1, uniform_BK, rules, how)
        tokens_BKC = jax.lax.dynamic_update_slice_in_dim(tokens_BKC, put_BK[..., None], column, axis=2)
        log_probs_BKC = jax.lax.dynamic_update_slice_in_dim(log_probs_BKC, log_prob_BK[..., None], column, axis=2)
        return state, tokens_BKC, log_probs_BKC

    tokens_BKC = jnp.full((B, K, CHUNK), NOTHING, jnp.int32)
    carry = (state._replace(done_BK=state.done_BK | stopped_BK), tokens_BKC, jnp.zeros((B, K, CHUNK), jnp.float32))
    state, tokens_BKC, log_probs_BKC = jax.lax.while_loop(unfinished, body, carry)
    return state, tokens_BKC, log_probs_BKC, jnp.all(state.done_BK)


@functools.partial(jax.jit, static_argnames=("model", "length", "num_samples"))
def _grow(model, cache, length, num_samples):
    return model.grow_decoding(cache, length, num_beams=num_samples)


# ---------------------------------------------------------------------------------------------------------- the host


def sample(model, decoder, prefix: Prefix, idle_BK, rules: Rules, how: Draws):
    """Generator of chunks (token_BKC int32, log_prob_BKC float32) as numpy arrays; the first chunk has one position.

    token_BKC is NOTHING behind a sample's end. `send(stopped_BK)` ends samples from the host; without it, as with None,
    they run on. idle_BK: rows and samples that only fill the batch. Raises NonFiniteError for logits that are NaN.
    """
    B, K = idle_BK.shape
    openers = rules.openers_BJ.shape[1]
    max_length = int(rules.max_new_tokens) + openers  # of all tokens; the last one is never fed
    lengths = list(rooms(max_length))
    uniform_BKC = _uniforms(how.keys_BK, 0)
    state, token_BKC, log_prob_BKC = _first(prefix.logits_BV, jnp.asarray(idle_BK), uniform_BKC[..., 0], rules, how)
    state = state._replace(cache=_start(model, decoder, prefix, lengths[0], K))
    position, running_BK, all_done = 0, np.zeros((B, K), bool), False
    while True:
        token_BKC, log_prob_BKC = np.asarray(token_BKC), np.asarray(log_prob_BKC)
        check_finite(log_prob_BKC)
        stopped_BK = yield token_BKC, log_prob_BKC
        position_end = min(position + CHUNK, max_length - 1)
        if all_done or position == position_end:
            return
        if position == lengths[0]:
            lengths.pop(0)
            state = state._replace(cache=_grow(model, state.cache, lengths[0], K))
        stopped_BK = jnp.asarray(running_BK if stopped_BK is None else stopped_BK)
        uniform_BKC = _uniforms(how.keys_BK, position + 1)
        state, token_BKC, log_prob_BKC, all_done = _continue(
            model, decoder, state, stopped_BK, jnp.int32(position_end), uniform_BKC, rules, how
        )
        position, all_done = position_end, bool(all_done)


def check_finite(log_prob_BK) -> None:
    """Raises NonFiniteError where the log-probability of a chosen token says that the logits were NaN."""
    if not np.isfinite(log_prob_BK).all():
        raise NonFiniteError("the model's logits are not finite; check the weights, or compute in float32.")
