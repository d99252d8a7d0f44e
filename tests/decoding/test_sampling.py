"""Sampling: against a plain reading in numpy, on a model whose logits can be worked out, and on a real decoder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_decoders import Table

from codegen2_jax.decoding import sampling
from codegen2_jax.decoding.settings import TEMPERATURES
from codegen2_jax.errors import NonFiniteError
from codegen2_jax.models.codegen import CodeGenConfig
from codegen2_jax.models.decoder_only import DecoderOnly

# -------------------------------------------------------------------------------------------------------- one token


def plain_keep(logits_V, *, temperature=1.0, top_k=0, top_p=1.0):
    """Temperature, then top-k, then top-p, on a sorted list; probabilities float64[V]. No ties."""
    order = np.argsort(-logits_V)
    kept = list(order[: top_k or None])
    weights = np.exp((logits_V - logits_V.max()).astype(np.float64) / temperature)
    total, nucleus = sum(weights[kept]), []
    for token in kept:
        if sum(weights[nucleus]) / total >= top_p:
            break
        nucleus.append(token)
    probs_V = np.zeros(len(logits_V))
    probs_V[nucleus] = weights[nucleus] / sum(weights[nucleus])
    return probs_V


SETTINGS = [
    {},
    {"temperature": 0.3},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 500},
    {"top_p": 0.9},
    {"top_p": 1e-6},
    {"top_k": 5, "top_p": 0.7},
    {"temperature": 2.0, "top_k": 12, "top_p": 0.8},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_what_is_kept_equals_a_plain_reading(settings):
    logits_BKV = np.random.default_rng(0).normal(size=(6, 5, 97)).astype(np.float32) * 3
    temperature = settings.get("temperature", 1.0)
    rest = {name: jnp.float32(value) for name, value in settings.items() if name != "temperature"}
    kept_BKV = jax.jit(sampling.keep)(jnp.asarray(logits_BKV) / temperature, **rest)
    probs_BKV = np.asarray(jax.nn.softmax(kept_BKV, axis=-1))
    for logits_V, probs_V in zip(logits_BKV.reshape(-1, 97), probs_BKV.reshape(-1, 97), strict=True):
        np.testing.assert_allclose(probs_V, plain_keep(logits_V, **settings), atol=2e-6)


def test_the_temperature_comes_before_top_p_and_top_k_before_it():
    """Of probabilities 0.5, 0.3, 0.2: either order would keep something else."""
    logits_11V = jnp.log(jnp.asarray([[[0.5, 0.3, 0.2]]]))
    number = lambda kept: int(np.isfinite(np.asarray(kept)).sum())  # noqa: E731
    assert number(sampling.keep(logits_11V, top_p=0.75)) == 2
    assert number(sampling.keep(logits_11V / 0.25, top_p=0.75)) == 1  # 0.87, 0.11, 0.02
    assert number(sampling.keep(logits_11V, top_p=0.6)) == 2
    assert number(sampling.keep(logits_11V, top_k=2, top_p=0.6)) == 1  # of what top_k leaves the first has 0.625


def test_equals_at_the_edge_are_all_kept():
    logits_11V = jnp.asarray([[[1.0, 2.0, 1.0, 1.0, -3.0]]])
    for kept in (sampling.keep(logits_11V, top_k=2), sampling.keep(logits_11V, top_p=0.6)):
        np.testing.assert_array_equal(np.isfinite(kept[0, 0]), [True, True, True, True, False])


LONG = [{"top_p": 0.95}, {"top_p": 0.5}, {"top_k": 200}, {"top_k": 64, "top_p": 0.9}, {"top_k": 1000, "top_p": 0.7}]


@pytest.mark.parametrize("settings", LONG, ids=str)
def test_rows_that_keep_few_and_rows_that_keep_many_stand_in_one_batch(settings):
    """Beyond the PREFIX largest logits the way to the cut is another one; a row never depends on its neighbours'."""
    rng, V = np.random.default_rng(6), 3000
    logits_3V = rng.normal(size=(3, V)).astype(np.float32) * np.asarray([[12.0], [0.3], [1.5]], np.float32)
    keep = jax.jit(sampling.keep)
    rest = {name: jnp.float32(value) for name, value in settings.items()}
    kept_3V = np.asarray(keep(jnp.asarray(logits_3V)[:, None], **rest))[:, 0]
    numbers = np.isfinite(kept_3V).sum(axis=1)
    if "top_k" not in settings:
        assert numbers[0] < sampling.PREFIX < numbers[1], "the batch does not show both ways"
    for row, (logits_V, kept_V) in enumerate(zip(logits_3V, kept_3V, strict=True)):
        expected = int((plain_keep(logits_V, **settings) > 0).sum())
        assert abs(int(numbers[row]) - expected) <= 1, "one token at the edge may be a matter of rounding"
        assert set(np.flatnonzero(np.isfinite(kept_V))) == set(np.argsort(-logits_V)[: numbers[row]])
        np.testing.assert_array_equal(keep(jnp.asarray(logits_V)[None, None], **rest)[0, 0], kept_V)


def test_a_draw_is_the_place_in_the_distribution_over_many_blocks():
    """Against a running sum in float64; a token of probability 0 is never drawn."""
    V, draws = 2 * sampling.BLOCK + 77, 4000
    rng = np.random.default_rng(7)
    weights_V = rng.exponential(size=V) * (rng.uniform(size=V) < 0.2)
    weights_V[: sampling.BLOCK] = 0.0  # a whole block that is impossible
    uniform_1K = ((np.arange(draws) + 0.5) / draws).astype(np.float32)[None]
    logits_V = np.log(np.maximum(weights_V, 1e-45)).astype(np.float32)
    logits_V[weights_V == 0] = -np.inf
    logits_1KV = jnp.broadcast_to(jnp.asarray(logits_V)[None, None], (1, draws, V))
    token_1K, _ = sampling.choose(logits_1KV, jnp.asarray(uniform_1K), temperature=1.0)
    running_V = np.cumsum(weights_V) / weights_V.sum()
    low_K, high_K = (np.searchsorted(running_V, uniform_1K[0] + sign * 2e-6, side="right") for sign in (-1, 1))
    token_K = np.asarray(token_1K[0])
    assert ((low_K <= token_K) & (token_K <= high_K)).all() and (weights_V[token_K] > 0).all()
    assert len(set(token_K.tolist())) > 50


@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[1], SETTINGS[7]], ids=str)
def test_frequencies(settings):
    """A chi-square test of 40,000 draws: its value is below the 99.99 % point of its distribution."""
    draws, V = 40_000, 12
    logits_V = np.random.default_rng(3).normal(size=V).astype(np.float32)
    options = {"temperature": 1.0} | settings
    uniform_1K = jax.random.uniform(jax.random.key(5), (1, draws))
    logits_1KV = jnp.broadcast_to(logits_V[None, None], (1, draws, V))
    token_1K, log_prob_1K = jax.jit(functools.partial(sampling.choose, **options))(logits_1KV, uniform_1K)
    expected_V = plain_keep(logits_V, **settings) * draws
    count_V = np.bincount(np.asarray(token_1K[0]), minlength=V)
    possible = expected_V > 0
    assert not count_V[~possible].any()
    chi_square = np.sum((count_V - expected_V)[possible] ** 2 / expected_V[possible])
    freedom = possible.sum() - 1
    assert chi_square < freedom + 3.72 * np.sqrt(2 * freedom) + 3.72**2  # Laurent and Massart's bound
    raw_V = logits_V - np.log(np.sum(np.exp(logits_V)))
    np.testing.assert_allclose(log_prob_1K[0], raw_V[np.asarray(token_1K[0])], atol=1e-5)


@pytest.mark.parametrize("uniform, token", [(0.0, 2), (0.49, 2), (0.51, 5), (np.nextafter(np.float32(1), 0), 5)])
def test_the_ends_of_the_distribution_are_possible_tokens(uniform, token):
    logits_11V = jnp.full((1, 1, 9), -jnp.inf).at[..., jnp.asarray([2, 5])].set(0.3)
    found_11, _ = sampling.choose(logits_11V, jnp.full((1, 1), uniform), temperature=1.0)
    assert int(found_11[0, 0]) == token


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_limits_of_temperature_are_still_a_distribution(temperature):
    logits_1KV = jnp.asarray(np.random.default_rng(1).normal(size=(1, 64, 50)), jnp.float32) * 1000
    uniform_1K = jnp.linspace(0, 0.999, 64)[None]
    token_1K, _ = sampling.choose(logits_1KV, uniform_1K, temperature=jnp.float32(temperature), top_p=jnp.float32(1.0))
    if temperature < 1:
        np.testing.assert_array_equal(token_1K, jnp.argmax(logits_1KV, -1))
    else:
        np.testing.assert_allclose(token_1K[0], np.arange(64) * 50 // 64, atol=1)



def test_no_temperature_is_the_likeliest_token():
    logits_BKV = jnp.asarray(np.random.default_rng(4).normal(size=(3, 4, 50)), jnp.float32)
    token_BK, _ = sampling.choose(logits_BKV, None)
    np.testing.assert_array_equal(token_BK, np.argmax(logits_BKV, axis=-1))


# ------------------------------------------------------------------------------------------------------------ chunks


def run(model, params, tokens_BS, mask_BS, *, num_samples, max_new_tokens, stop_ids=(), stop_at=None, **options):
    """All chunks of B prompts as (tokens_BKT, log_probs_BKT) and their sizes; stop_at[(b, k)]: chunk after which."""
    options = {"seed": 0, "temperature": 1.0, "top_k": 0, "top_p": 1.0} | options
    B = len(tokens_BS)
    prefix = sampling.read(model, params, tokens_BS, mask_BS)
    none_BJ = jnp.zeros((B, 0), jnp.int32)
    rules = sampling.Rules(
        jnp.asarray(stop_ids, jnp.int32), jnp.int32(sampling.NOTHING), none_BJ, jnp.int32(max_new_tokens)
    )
    how = sampling.draws(range(B), range(num_samples), **options)
    idle_BK = np.zeros((B, num_samples), bool)
    chunks = sampling.sample(model, sampling.lay_out(model, params), prefix, idle_BK, rules, how)
    found, stopped_BK = [next(chunks)], np.zeros((B, num_samples), bool)
    while True:
        for place, number in (stop_at or {}).items():
            stopped_BK[place] |= number < len(found)
        try:
            found.append(chunks.send(stopped_BK))
        except StopIteration:
            break
    tokens_BKT, log_probs_BKT = (np.concatenate(parts, axis=2) for parts in zip(*found, strict=True))
    return tokens_BKT, log_probs_BKT, [chunk[0].shape[2] for chunk in found]


def table(vocab_size=11, seed=0, scale=1.5):
    table_HV = np.random.default_rng(seed).normal(size=(997, vocab_size)) * scale
    return {"table_HV": jnp.asarray(table_HV, jnp.float32)}


PROMPTS_BS = np.asarray([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0], [8, 0, 0, 0, 0]], np.int32)
MASK_BS = np.arange(5)[None] < np.asarray([5, 3, 1])[:, None]


def test_every_sample_reads_its_own_past_over_two_cache_lengths():
    params, length = table(), sampling.FIRST_ROOM + 40
    tokens_BKT, log_probs_BKT, sizes = run(
        Table(), params, PROMPTS_BS, MASK_BS, num_samples=3, max_new_tokens=length, temperature=0.8, top_p=0.9
    )
    assert sizes[0] == 1 and set(sizes[1:]) == {sampling.CHUNK}
    assert (tokens_BKT[..., :length] >= 0).all() and (tokens_BKT[..., length:] == sampling.NOTHING).all()
    assert len({tuple(tokens_T) for tokens_T in tokens_BKT.reshape(9, -1)}) == 9
    for row, mask_S in enumerate(MASK_BS):
        prompt = PROMPTS_BS[row][mask_S].tolist()
        for k in range(3):
            tokens = tokens_BKT[row, k, :length].tolist()
            expected = Table.log_probability(params, prompt, tokens)
            assert float(log_probs_BKT[row, k].sum()) == pytest.approx(expected, rel=1e-4)
            for place in (0, 1, 33, length - 1):
                logits_V = Table.logits_after(params, prompt + tokens[:place])
                assert plain_keep(logits_V, temperature=0.8, top_p=0.9)[tokens[place]] > 0


def test_greedy_is_the_likeliest_path_and_ends_at_a_stop_id():
    params, stop_ids = table(seed=10), (4, 10)
    tokens_BKT, _, _ = run(
        Table(), params, PROMPTS_BS, MASK_BS, num_samples=2, max_new_tokens=60, stop_ids=stop_ids, temperature=0.0
    )
    ends = set()
    for row, mask_S in enumerate(MASK_BS):
        prompt, tokens = PROMPTS_BS[row][mask_S].tolist(), []
        while len(tokens) < 60 and not (tokens and tokens[-1] in stop_ids):
            tokens.append(int(np.argmax(Table.logits_after(params, prompt + tokens))))
        for k in range(2):
            assert tokens_BKT[row, k].tolist() == tokens + [sampling.NOTHING] * (tokens_BKT.shape[2] - len(tokens))
        ends.add((tokens[-1], len(tokens)))
    assert {token for token, _ in ends} == {4, 10} and len(ends) == 3, f"{ends} show too little of how samples end"


def test_a_sample_that_the_host_stops_is_frozen_and_the_others_are_as_without():
    params = table()
    options = {"num_samples": 2, "max_new_tokens": 100}
    tokens_BKT, *_ = run(Table(), params, PROMPTS_BS, MASK_BS, **options)
    stopped_BKT, *_ = run(Table(), params, PROMPTS_BS, MASK_BS, stop_at={(1, 0): 1}, **options)
    kept = 1 + sampling.CHUNK
    assert (stopped_BKT[1, 0, kept:] == sampling.NOTHING).all() and (tokens_BKT[1, 0, kept:100] >= 0).all()
    np.testing.assert_array_equal(stopped_BKT[1, 0, :kept], tokens_BKT[1, 0, :kept])
    tokens_BKT[1, 0] = stopped_BKT[1, 0]
    np.testing.assert_array_equal(stopped_BKT, tokens_BKT)


def test_the_device_leaves_when_all_samples_have_ended():
    steps = []

    class Counting(Table):
        def decode_step(self, decoder, cache, tokens_BK, position, ancestry_BKT=None):
            jax.debug.callback(lambda at: steps.append(int(at)), position)
            return super().decode_step(decoder, cache, tokens_BK, position, ancestry_BKT)

    options = {"num_samples": 2, "max_new_tokens": 500, "stop_ids": range(1, 11)}
    tokens_BKT, _, sizes = run(Counting(), table(), PROMPTS_BS, MASK_BS, **options)
    jax.effects_barrier()
    longest = int((tokens_BKT != sampling.NOTHING).sum(axis=2).max())
    assert len(steps) == longest - 1 < sampling.CHUNK and len(sizes) == 2


def test_each_position_has_a_number_of_its_own_whatever_the_chunk():
    how = sampling.draws([4, 7], [0, 1, 2], seed=3, temperature=1.0, top_k=0, top_p=1.0)
    first_BKC, later_BKC = sampling._uniforms(how.keys_BK, 0), sampling._uniforms(how.keys_BK, 5)
    np.testing.assert_array_equal(first_BKC[..., 5:], later_BKC[..., :-5])
    assert len(np.unique(first_BKC)) == first_BKC.size
    alone = sampling.draws([7], [2], seed=3, temperature=1.0, top_k=0, top_p=1.0)
    np.testing.assert_array_equal(sampling._uniforms(alone.keys_BK, 0)[0, 0], first_BKC[1, 2])


def test_one_token_needs_no_cache():
    tokens_BKT, _, sizes = run(Table(), table(), PROMPTS_BS, MASK_BS, num_samples=2, max_new_tokens=1)
    assert sizes == [1] and (tokens_BKT >= 0).all()


def test_cache_lengths_grow_up_to_what_is_fed():
    assert sampling.rooms(1) == sampling.rooms(2) == (1,)
    assert sampling.rooms(129) == (128,) and sampling.rooms(130) == (128, 129)
    assert sampling.rooms(2000) == (128, 512, 1999)


def test_logits_that_are_no_numbers_are_an_error():
    params = table()
    params["table_HV"] = params["table_HV"].at[:, 3].set(jnp.nan)
    with pytest.raises(NonFiniteError, match="not finite"):
        run(Table(), params, PROMPTS_BS, MASK_BS, num_samples=2, max_new_tokens=5)


# ---------------------------------------------------------------------------------------------------- a real decoder


@pytest.mark.parametrize("prefix_lm", [False, True])
def test_step_by_step_equals_the_whole_sequence(prefix_lm):
    """The log-probabilities that samples report are those of one forward pass over prompt and sample."""
    config = CodeGenConfig(
        vocab_size=61,
        d_model=32,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        head_dim=8,
        rotary_dim=4,
        prefix_lm=prefix_lm,
        **{f"{name}_token_id": 0 for name in ("bos", "eos", "pad", "decoder_start")},
    )
    model = DecoderOnly(config)
    params = jax.jit(model.init_params)(jax.random.key(1))
    params = jax.tree.map(lambda w: w * 3 if w.ndim > 1 else w, params)  # so that a wrong past would show
    tokens_BKT, log_probs_BKT, _ = run(model, params, PROMPTS_BS, MASK_BS, num_samples=2, max_new_tokens=12)
    B, K, T = 3, 2, 12
    tokens_BKT, log_probs_BKT = tokens_BKT[..., :T], log_probs_BKT[..., :T]
    lengths_B, width = MASK_BS.sum(axis=1), 5 + T
    whole_NT, bidirectional_NT = np.zeros((B * K, width), np.int32), np.zeros((B * K, width), bool)
    for n, (row, k) in enumerate(np.ndindex(B, K)):
        whole_NT[n, : lengths_B[row]] = PROMPTS_BS[row][MASK_BS[row]]
        whole_NT[n, lengths_B[row] : lengths_B[row] + T] = tokens_BKT[row, k]
        bidirectional_NT[n, : lengths_B[row]] = True
    places_NT = np.broadcast_to(np.arange(width)[None], whole_NT.shape)
    segments_NT = (places_NT < np.repeat(lengths_B, K)[:, None] + T).astype(np.int32)
    batch = {"tokens_BT": whole_NT, "positions_BT": places_NT, "segments_BT": segments_NT}
    logits_NTV = jax.jit(model.logits)(params, batch | {"bidirectional_BT": bidirectional_NT})
    log_probs_NTV = np.asarray(jax.nn.log_softmax(logits_NTV, axis=-1))
    for n, (row, k) in enumerate(np.ndindex(B, K)):
        at_T = lengths_B[row] - 1 + np.arange(T)
        expected_T = log_probs_NTV[n, at_T, tokens_BKT[row, k]]
        # Weights that are half a unit of their last place apart move these by up to 2e-4, a wrong past by far more.
        np.testing.assert_allclose(log_probs_BKT[row, k], expected_T, atol=5e-4)
