"""Greedy and beam search: against transformers' generate, and on toy models whose answer can be worked out."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codegen2_jax.decoding.generate import generate
from codegen2_jax.decoding.search import beam_search, greedy, segments, two_stage_top_k
from codegen2_jax.errors import UserError
from codegen2_jax.models.language_models import EncoderDecoder
from codegen2_jax.models.t5 import T5Config

START, EOS, PAD = 0, 2, 0
IDS = {"start_id": START, "eos_id": EOS, "pad_id": PAD}
compiled = jax.jit(generate, static_argnums=0, static_argnames=("max_length", "num_beams", "length_penalty"))


# ------------------------------------------------------------------------------------------------ against transformers


def until_eos(row):
    row = [int(token) for token in row]
    return row[: row.index(EOS) + 1] if EOS in row else row


@pytest.mark.parametrize(
    "tied, num_beams, length_penalty",
    [(True, 1, 1.0), (False, 1, 1.0), (True, 5, 1.0), (False, 5, 1.0), (False, 5, 0.3)],
)
def test_tokens_equal_transformers(tmp_path, tied, num_beams, length_penalty):
    """Over several seeds, with padded sources, rows that end at different lengths and rows that never end."""
    torch_t5 = pytest.importorskip("torch_t5")
    from codegen2_jax.interop.huggingface import load

    max_length, lengths = 33, []  # 33: one length of cache; the toy models cross into others
    for seed in range(4):
        shape = {"num_layers": 1, "num_decoder_layers": 1, "eos_scale": 6.0 if tied else 1.8}
        torch_t5.save_random_t5(tmp_path / str(seed), tied=tied, seed=seed, **shape)
        rng = np.random.default_rng(seed)
        inputs_BS = rng.integers(3, 97, (6, 14), dtype=np.int32)
        mask_BS = np.arange(14)[None] < rng.integers(3, 15, 6)[:, None]
        theirs = torch_t5.load(tmp_path / str(seed)).generate(
            input_ids=torch_t5.torch.tensor(inputs_BS),
            attention_mask=torch_t5.torch.tensor(mask_BS).long(),
            max_length=max_length,
            num_beams=num_beams,
            length_penalty=length_penalty,
            early_stopping=False,
            do_sample=False,
        )
        config, params = load(tmp_path / str(seed))
        batch = {"inputs_BS": inputs_BS, "inputs_mask_BS": mask_BS}
        options = {"max_length": max_length, "num_beams": num_beams, "length_penalty": length_penalty}
        ours = np.asarray(compiled(EncoderDecoder(config), params, batch, **options))
        assert ours.shape == (6, max_length) and ours.dtype == np.int32
        for our_row, their_row in zip(ours, theirs.numpy(), strict=True):
            tokens = until_eos(our_row)
            assert tokens == until_eos(their_row), f"seed {seed}"
            assert not np.any(our_row[len(tokens) :] != PAD)
            lengths.append(len(tokens))
    assert min(lengths) < max_length, "nothing ended: the test would not see how hypotheses finish"
    if not tied:
        assert len(set(lengths)) >= 4 and max(lengths) == max_length


# ----------------------------------------------------------------------------------------------------------- toy models


def history_step(table_HV):
    """A model whose logits depend on the whole history through the cache and the ancestry, and on the row.

    The cache holds the token of every slot, as an attention cache holds its key; a wrong ancestry reads another's past.
    """

    def step(cache, tokens_BK, position, ancestry_BKT):
        B, K = tokens_BK.shape
        slots_BTK = jax.lax.dynamic_update_slice(cache["slots_BTK"], tokens_BK[:, None], (0, position, 0))
        T = slots_BTK.shape[1]
        own_BKT = jnp.broadcast_to(jnp.arange(K)[None, :, None], (B, K, T))
        time_11T = jnp.arange(T)[None, None]
        if ancestry_BKT is not None:
            own_BKT = jnp.where(time_11T < position, ancestry_BKT[:, :, :T], own_BKT)
        past_BKT = jnp.take_along_axis(slots_BTK, own_BKT.swapaxes(1, 2), axis=2).swapaxes(1, 2)
        weight_11T = jnp.where(time_11T <= position, 7 ** (time_11T % 5) + time_11T, 0)
        state_BK = (jnp.sum(past_BKT * weight_11T, axis=2) + jnp.arange(B)[:, None] * 13) % table_HV.shape[0]
        return table_HV[state_BK], {"slots_BTK": slots_BTK, "steps": cache["steps"] + 1}

    return step


def grow(cache, length):
    slots_BTK = cache["slots_BTK"]
    return {**cache, "slots_BTK": jnp.pad(slots_BTK, ((0, 0), (0, length - slots_BTK.shape[1]), (0, 0)))}


def start(batch_size, num_beams, max_length):
    return {"slots_BTK": jnp.zeros((batch_size, segments(max_length)[0], num_beams), jnp.int32), "steps": jnp.int32(0)}


def logits_after(table_HV, row, tokens):
    weights = [7 ** (t % 5) + t for t in range(len(tokens))]
    state = (sum(token * weight for token, weight in zip(tokens, weights, strict=True)) + 13 * row) % len(table_HV)
    return table_HV[state]


def log_probabilities(logits):
    return logits - np.log(np.sum(np.exp(logits)))


@pytest.mark.parametrize("seed", range(3))
def test_a_beam_wide_enough_finds_the_best_of_all_sequences(seed):
    """Without a length penalty and with room for every prefix, beam search is an exhaustive search."""
    V, max_length, rows = 4, 5, 3
    table_HV = np.random.default_rng(seed).normal(size=(101, V)).astype(np.float32) * 2
    options = {"batch_size": rows, "max_length": max_length, "num_beams": 128, "length_penalty": 0.0}
    search = jax.jit(lambda cache: beam_search(history_step(jnp.asarray(table_HV)), grow, cache, **options, **IDS))
    tokens_BKT, score_BK = search(start(rows, 128, max_length))
    for row in range(rows):
        scores = {}
        for tail in itertools.product(range(V), repeat=max_length - 1):
            tail = tail[: tail.index(EOS) + 1] if EOS in tail else tail
            tokens, score = [START], 0.0
            for token in tail:
                score += log_probabilities(logits_after(table_HV, row, tokens))[token]
                tokens.append(token)
            scores[tuple(tokens)] = score
        best = max(scores, key=scores.get)
        assert tuple(np.asarray(tokens_BKT[row, 0][: len(best)])) == best
        assert float(score_BK[row, 0]) == pytest.approx(scores[best], abs=1e-4)


def plain_beam_search(table_HV, row, *, max_length, num_beams, length_penalty):
    """The reference's rules on lists, one row, nothing shared: what `beam_search` must equal however long it runs."""
    running, finished, settled = [(0.0, [START])], [], False
    for length in range(1, max_length):
        candidates = []
        for score, tokens in running:
            log_probs = log_probabilities(logits_after(table_HV, row, tokens))
            candidates += [(score + log_probs[token], tokens + [token]) for token in range(len(log_probs))]
        candidates = sorted(candidates, key=lambda item: -item[0])[: 2 * num_beams]
        last = length == max_length - 1
        for score, tokens in candidates[:num_beams]:
            if (tokens[-1] == EOS or last) and not settled:
                finished.append((score / length**length_penalty, tokens))
        finished = sorted(finished, key=lambda item: -item[0])[:num_beams]
        running = [item for item in candidates if item[1][-1] != EOS][:num_beams]
        best_possible = running[0][0] / length**length_penalty
        settled = settled or (len(finished) == num_beams and best_possible <= finished[-1][0])
    return finished


@pytest.mark.parametrize("length_penalty", [1.0, 0.5])
def test_beams_follow_their_own_past_over_several_cache_lengths(length_penalty):
    V, max_length, rows, beams = 23, 90, 4, 5
    table_HV = np.random.default_rng(2).normal(size=(997, V)).astype(np.float32) * 1.5
    options = {"max_length": max_length, "num_beams": beams, "length_penalty": length_penalty}
    step = history_step(jnp.asarray(table_HV))
    search = jax.jit(lambda cache: beam_search(step, grow, cache, batch_size=rows, **options, **IDS))
    tokens_BKT, score_BK = search(start(rows, beams, max_length))
    lengths = set()
    for row in range(rows):
        expected = plain_beam_search(table_HV, row, **options)
        np.testing.assert_allclose(score_BK[row], [score for score, _ in expected], rtol=1e-4)
        assert until_eos(tokens_BKT[row, 0]) == expected[0][1]
        lengths.add(len(expected[0][1]))
    assert len(lengths) > 1 and max(lengths) > 33, f"{lengths} would not cross into a second cache length"


def test_greedy_follows_the_best_token_and_pads_after_eos():
    V, max_length, rows = 11, 70, 5
    table_HV = np.random.default_rng(4).normal(size=(997, V)).astype(np.float32)
    table_HV[:, EOS] -= 0.9
    step = history_step(jnp.asarray(table_HV))
    search = jax.jit(lambda cache: greedy(step, grow, cache, batch_size=rows, max_length=max_length, **IDS))
    tokens_BT = np.asarray(search(start(rows, 1, max_length)))
    lengths = set()
    for row in range(rows):
        tokens = [START]
        while len(tokens) < max_length and tokens[-1] != EOS:
            tokens.append(int(np.argmax(logits_after(table_HV, row, tokens))))
        assert tokens_BT[row].tolist() == tokens + [PAD] * (max_length - len(tokens))
        lengths.add(len(tokens))
    assert len(lengths) > 2 and max(lengths) > 33


@pytest.mark.parametrize("num_beams", [1, 3])
def test_the_search_leaves_when_all_rows_are_done(num_beams):
    """Row b may end from its position b on; with 4 rows at most a few steps of 200 are taken."""
    steps = []

    def step(cache, tokens_BK, position, ancestry_BKT):
        jax.debug.callback(lambda p: steps.append(int(p)), position)
        B, K = tokens_BK.shape
        may_end_B = position >= jnp.arange(B)
        end_BV = jnp.where(may_end_B[:, None], 9.0, -9.0) * (jnp.arange(7) == EOS)[None]
        spread_V = jnp.linspace(0.0, 0.1, 7)
        return jnp.broadcast_to((end_BV + spread_V[None])[:, None], (B, K, 7)), cache

    options = {"batch_size": 4, "max_length": 200, **IDS}
    if num_beams == 1:
        tokens = greedy(step, lambda cache, length: cache, (), **options)
    else:
        tokens = beam_search(step, lambda cache, length: cache, (), num_beams=num_beams, **options)[0][:, 0]
    jax.effects_barrier()
    assert [len(until_eos(row)) for row in np.asarray(tokens)] == [2, 3, 4, 5]
    assert len(steps) <= 8


# --------------------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize("size", [7, 640, 5 * 32100, 5 * 101, 997])
@pytest.mark.parametrize("k", [2, 10])
def test_two_stage_top_k_equals_the_sort_ties_included(size, k):
    if size < k:
        pytest.skip("k exceeds the row")
    rng = np.random.default_rng(size + k)
    for values_BN in (rng.normal(size=(3, size)), rng.integers(0, 4, (3, size)), np.zeros((3, size))):
        values_BN = jnp.asarray(values_BN, jnp.float32)
        expected_values, expected_indices = jax.lax.top_k(values_BN, k)
        values, indices = jax.jit(functools.partial(two_stage_top_k, k=k))(values_BN)
        np.testing.assert_array_equal(values, expected_values)
        np.testing.assert_array_equal(indices, expected_indices)


def test_cache_lengths_double_up_to_what_is_fed():
    assert segments(2) == (1,) and segments(33) == (32,) and segments(34) == (32, 33)
    assert segments(150) == (32, 64, 128, 149)
    with pytest.raises(UserError, match="max_length=1"):
        segments(1)


def test_no_beams_are_refused():
    with pytest.raises(UserError, match="num_beams=0"):
        beam_search(None, None, None, batch_size=1, max_length=5, num_beams=0, **IDS)
    with pytest.raises(UserError, match="length_penalty=nan"):
        beam_search(None, None, None, batch_size=1, max_length=5, num_beams=2, length_penalty=float("nan"), **IDS)


def test_generation_sees_the_prompt_and_neither_padding_nor_neighbours():
    config = T5Config(
        vocab_size=97, d_model=32, d_ff=64, num_encoder_layers=1, num_decoder_layers=1, num_heads=4, head_dim=8
    )
    model = EncoderDecoder(config)
    params = jax.jit(model.init_params)(jax.random.key(0))
    inputs_BS = np.random.default_rng(0).integers(3, 97, (3, 9), dtype=np.int32)
    mask_BS = np.arange(9)[None] < np.array([9, 6, 4])[:, None]
    batch = {"inputs_BS": inputs_BS, "inputs_mask_BS": mask_BS}
    options = {"max_length": 12}
    tokens_BT = compiled(model, params, batch, **options)
    alone = {"inputs_BS": np.where(mask_BS, inputs_BS, 0)[1:2, :6], "inputs_mask_BS": mask_BS[1:2, :6]}
    np.testing.assert_array_equal(compiled(model, params, alone, **options)[0], tokens_BT[1])
    prompt_BPD = jax.jit(model.embed)(params, inputs_BS[:, :2])
    mask_BS = np.concatenate([np.ones((3, 2), bool), mask_BS], axis=1)
    longer = {"inputs_BS": np.concatenate([inputs_BS[:, :2], inputs_BS], axis=1), "inputs_mask_BS": mask_BS}
    prompted = compiled(model, params, batch, prompt_BPD, **options)
    np.testing.assert_array_equal(prompted, compiled(model, params, longer, **options))
