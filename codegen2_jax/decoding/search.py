"""Greedy and beam search over an explicit cache, token for token those of transformers' `generate` (5.23).

A search knows no model. It is given

    step(cache, tokens_BK, position, ancestry_BKT) -> (logits_BKV float32, cache)
    grow(cache, length) -> cache with room for `length` positions

and feeds position after position. The cache starts with room for `segments(max_length)[0]` positions and grows a few
times, because attention reads all of it at every step and most outputs are far shorter than the maximum.

Shapes: B batch, K beams, T positions, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from codegen2_jax.decoding.settings import check_length_penalty
from codegen2_jax.errors import UserError

NEVER = -1.0e9  # the reference's score of what cannot be chosen; added, not assigned, as there
FIRST_SEGMENT = 32


def segments(max_length: int) -> tuple[int, ...]:
    """Cache lengths to run through, doubling; the last holds every position that is ever fed (max_length - 1)."""
    if max_length < 2:
        raise UserError(f"max_length={max_length} leaves no room after the start token, which counts; give at least 2.")
    lengths = [min(FIRST_SEGMENT, max_length - 1)]
    while lengths[-1] < max_length - 1:
        lengths.append(min(2 * lengths[-1], max_length - 1))
    return tuple(lengths)


def _run(unfinished, body, state, grow, lengths):
    """`body` while `unfinished`, in a cache that grows; the longer loops are not entered when all rows are done."""
    state = jax.lax.while_loop(lambda s: unfinished(s) & (s.position < lengths[0]), body, state)
    if len(lengths) == 1:
        return state._replace(cache=None)
    longer = lambda s: _run(unfinished, body, s._replace(cache=grow(s.cache, lengths[1])), grow, lengths[1:])  # noqa: E731
    return jax.lax.cond(unfinished(state), longer, lambda s: s._replace(cache=None), state)


# ------------------------------------------------------------------------------------------------------------ greedy


class _Greedy(NamedTuple):
    position: jax.Array  # of the newest token, which is fed next
    tokens_BT: jax.Array
    done_B: jax.Array
    cache: Any


def greedy(
    step: Callable,
    grow: Callable,
    cache: Any,
    *,
    batch_size: int,
    max_length: int,
    start_id: int | jax.Array,
    eos_id: int,
    pad_id: int,
) -> jax.Array:
    """tokens_BT int32 of length max_length: the start id, the likeliest tokens up to eos, then pad.

    start_id: one for all rows, or one for each, [B].
    """
    tokens_BT = jnp.full((batch_size, max_length), pad_id, jnp.int32).at[:, 0].set(start_id)

    def unfinished(state):
        return ~jnp.all(state.done_B)

    def body(state):
        tokens_B1 = jax.lax.dynamic_slice_in_dim(state.tokens_BT, state.position, 1, axis=1)
        logits_B1V, cache = step(state.cache, tokens_B1, state.position, None)
        token_B = jnp.argmax(logits_B1V[:, 0], axis=-1).astype(jnp.int32)
        token_B = jnp.where(state.done_B, pad_id, token_B)
        tokens_BT = jax.lax.dynamic_update_slice_in_dim(state.tokens_BT, token_B[:, None], state.position + 1, axis=1)
        return _Greedy(state.position + 1, tokens_BT, state.done_B | (token_B == eos_id), cache)

    state = _Greedy(jnp.int32(0), tokens_BT, jnp.zeros(batch_size, bool), cache)
    return _run(unfinished, body, state, grow, segments(max_length)).tokens_BT


# -------------------------------------------------------------------------------------------------------------- beam


class _Beam(NamedTuple):
    position: jax.Array
    running_BKT: jax.Array
    running_score_BK: jax.Array  # sum of log probabilities
    finished_BKT: jax.Array
    finished_score_BK: jax.Array  # the same divided by length ** length_penalty
    finished_BK: jax.Array  # whether this place holds a finished hypothesis
    improvable_B: jax.Array  # whether a running beam may still beat the worst finished one; never true again once false
    ancestry_BKT: jax.Array
    cache: Any


def beam_search(
    step: Callable,
    grow: Callable,
    cache: Any,
    *,
    batch_size: int,
    max_length: int,
    num_beams: int,
    start_id: int | jax.Array,
    eos_id: int,
    pad_id: int,
    length_penalty: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """The best finished hypotheses of every row, best first: (tokens_BKT int32, score_BK float32).

    As transformers' `_beam_search` with early_stopping=False: each step keeps the 2K best continuations; those that end
    (eos, or max_length reached) among the first K compete for K finished places by score / length ** length_penalty,
    the length counting eos and not the start token; the K best that do not end run on. A row is settled when its best
    running score, divided by the present length, no longer beats its worst finished one.

    Beams share the cache and nothing in it moves: ancestry_BKT says in which slot a beam finds each of its positions.
    """
    if num_beams < 1:
        raise UserError(f"num_beams={num_beams} must be at least 1; 1 is greedy, 5 is usual.")
    check_length_penalty(length_penalty)
    B, K, T = batch_size, num_beams, max_length
    start_B1 = jnp.broadcast_to(jnp.asarray(start_id, jnp.int32), (B,))[:, None]
    running_BKT = jnp.full((B, K, T), pad_id, jnp.int32).at[:, :, 0].set(start_B1)

    def unfinished(state):
        return jnp.any(state.improvable_B)

    def body(state):
        tokens_BK = jax.lax.dynamic_index_in_dim(state.running_BKT, state.position, axis=2, keepdims=False)
        logits_BKV, cache = step(state.cache, tokens_BK, state.position, state.ancestry_BKT)
        candidates = _candidates(state, logits_BKV, eos_id)
        return _compete(_run_on(state, candidates), candidates, length_penalty)._replace(
            position=state.position + 1, cache=cache
        )

    state = _Beam(
        position=jnp.int32(0),
        running_BKT=running_BKT,
        # Only the first beam counts at first: the others are copies of it.
        running_score_BK=jnp.full((B, K), NEVER, jnp.float32).at[:, 0].set(0.0),
        finished_BKT=running_BKT,
        finished_score_BK=jnp.full((B, K), NEVER, jnp.float32),
        finished_BK=jnp.zeros((B, K), bool),
        improvable_B=jnp.ones(B, bool),
        ancestry_BKT=jnp.zeros((B, K, T), jnp.int32),
        cache=cache,
    )
    state = _run(unfinished, body, state, grow, segments(max_length))
    return state.finished_BKT, state.finished_score_BK


class _Candidates(NamedTuple):
    """The C = 2K best continuations of every row, best first."""

    score_BC: jax.Array  # sum of log probabilities
    parent_BC: jax.Array  # the beam that is continued
    tokens_BCT: jax.Array
    ends_BC: jax.Array


def _candidates(state: _Beam, logits_BKV: jax.Array, eos_id: int) -> _Candidates:
    B, K, T = state.running_BKT.shape
    vocab_size = logits_BKV.shape[-1]
    log_probs_BKV = jax.nn.log_softmax(logits_BKV, axis=-1) + state.running_score_BK[:, :, None]
    score_BC, index_BC = two_stage_top_k(log_probs_BKV.reshape(B, K * vocab_size), 2 * K)
    parent_BC, token_BC = index_BC // vocab_size, (index_BC % vocab_size).astype(jnp.int32)
    tokens_BCT = jnp.take_along_axis(state.running_BKT, parent_BC[:, :, None], axis=1)
    tokens_BCT = jax.lax.dynamic_update_slice_in_dim(tokens_BCT, token_BC[:, :, None], state.position + 1, axis=2)
    return _Candidates(score_BC, parent_BC, tokens_BCT, (token_BC == eos_id) | (state.position + 2 >= T))


def _run_on(state: _Beam, candidates: _Candidates) -> _Beam:
    """The K best candidates that do not end are the next running beams."""
    K = state.running_score_BK.shape[1]
    score_BK, chosen_BK = jax.lax.top_k(candidates.score_BC + candidates.ends_BC * NEVER, K)
    parent_BK = jnp.take_along_axis(candidates.parent_BC, chosen_BK, axis=1)
    ancestry_BKT = jnp.take_along_axis(state.ancestry_BKT, parent_BK[:, :, None], axis=1)
    return state._replace(
        running_BKT=jnp.take_along_axis(candidates.tokens_BCT, chosen_BK[:, :, None], axis=1),
        running_score_BK=score_BK,
        ancestry_BKT=jax.lax.dynamic_update_slice_in_dim(ancestry_BKT, parent_BK[:, :, None], state.position, axis=2),
    )


def _compete(state: _Beam, candidates: _Candidates, length_penalty: float) -> _Beam:
    """Candidates among the first K that end compete with the finished hypotheses; a settled row takes no more."""
    K = state.running_score_BK.shape[1]
    length = (state.position + 1).astype(jnp.float32)
    ended_BC = candidates.ends_BC & (jnp.arange(2 * K) < K)[None]
    ended_score_BC = candidates.score_BC / length**length_penalty
    ended_score_BC = ended_score_BC + (~state.improvable_B)[:, None] * NEVER + (~ended_BC) * NEVER
    score_BK, kept_BK = jax.lax.top_k(jnp.concatenate([state.finished_score_BK, ended_score_BC], axis=1), K)
    tokens = jnp.concatenate([state.finished_BKT, candidates.tokens_BCT], axis=1)
    finished = jnp.concatenate([state.finished_BK, ended_BC], axis=1)
    finished_BK = jnp.take_along_axis(finished, kept_BK, axis=1)

    possible_B1 = state.running_score_BK[:, :1] / length**length_penalty
    worst_BK = jnp.where(finished_BK, jnp.min(score_BK, axis=1, keepdims=True), NEVER)
    return state._replace(
        finished_BKT=jnp.take_along_axis(tokens, kept_BK[:, :, None], axis=1),
        finished_score_BK=score_BK,
        finished_BK=finished_BK,
        improvable_B=state.improvable_B & jnp.any(possible_B1 > worst_BK, axis=1),
    )


def two_stage_top_k(values_BN: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """jax.lax.top_k over a long last axis, ties included: the k best chunks by their maxima, then the k best in those.

    An element of the result lies in one of the k first chunks in the order (maximum, chunk index), because every chunk
    ahead of its own holds an element ahead of it.
    """
    B, size = values_BN.shape
    chunk = min((c for c in range(64, 257) if size % c == 0), key=lambda c: abs(c - 128), default=128)
    values_BN = jnp.pad(values_BN, ((0, 0), (0, -size % chunk)), constant_values=-jnp.inf)
    values_BGC = values_BN.reshape(B, -1, chunk)
    groups = values_BGC.shape[1]
    if groups <= k:
        return jax.lax.top_k(values_BN, k)
    _, chosen_Bk = jax.lax.top_k(jnp.max(values_BGC, axis=2), k)
    chosen_Bk = jnp.sort(chosen_Bk, axis=1)  # so that equal values keep the order of their index
    index_BkC = chosen_Bk[:, :, None] * chunk + jnp.arange(chunk)[None, None]
    near_BkC = jnp.take_along_axis(values_BGC, chosen_Bk[:, :, None], axis=1)
    values_Bk, place_Bk = jax.lax.top_k(near_BkC.reshape(B, k * chunk), k)
    return values_Bk, jnp.take_along_axis(index_BkC.reshape(B, k * chunk), place_Bk, axis=1)
