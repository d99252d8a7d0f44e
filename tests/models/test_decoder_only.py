"""Decoders by their own promises: counts, masks, positions, caches. Parity with transformers is in tests/interop."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codegen2_jax.errors import UserError
from codegen2_jax.models.codegen import CodeGenConfig
from codegen2_jax.models.decoder_only import DecoderOnly
from codegen2_jax.models.llama import LlamaConfig

SIZES = dict(vocab_size=97, d_model=32, d_ff=64, num_layers=2, num_heads=4, head_dim=8, max_positions=64)
CODEGEN = CodeGenConfig(**SIZES, rotary_dim=4, initialisation="huggingface")
LLAMA = LlamaConfig(**SIZES, num_kv_heads=2)
FAMILIES = pytest.mark.parametrize("config", [CODEGEN, LLAMA], ids=["codegen", "llama"])
T = 12


@functools.cache
def _drawn(family):
    params = jax.jit(DecoderOnly(CODEGEN if family is CodeGenConfig else LLAMA).init_params)(jax.random.key(0))
    return jax.tree.map(lambda w: w * 5 if w.ndim > 1 else w, params)


def drawn(config):
    """Parameters of the family whose logits differ by some units, so that a wrong mask or position shows."""
    return _drawn(type(config))


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, params, batch):
    return model.logits(params, batch)


def packed(tokens_BT, segments_BT=None, prefixes=None, positions_BT=None):
    shape = tokens_BT.shape
    segments_BT = np.ones(shape, np.int32) if segments_BT is None else segments_BT
    positions_BT = np.broadcast_to(np.arange(shape[1]), shape) if positions_BT is None else positions_BT
    bidirectional_BT = np.zeros(shape, bool) if prefixes is None else prefixes
    return {
        "tokens_BT": tokens_BT,
        "segments_BT": segments_BT,
        "positions_BT": positions_BT,
        "bidirectional_BT": bidirectional_BT,
    }


@pytest.fixture(scope="module")
def tokens_BT():
    return np.random.default_rng(0).integers(0, 97, (2, T), dtype=np.int32)


@functools.partial(jax.jit, static_argnums=0)
def prefilled(model, params, inputs_BS, mask_BS, prompt_BPD=None):
    return model.prefill(params, inputs_BS, mask_BS, prompt_BPD)


@functools.partial(jax.jit, static_argnums=0)
def stepped(model, decoder, cache, tokens_BK, position, ancestry_BKT=None):
    return model.decode_step(decoder, cache, tokens_BK, position, ancestry_BKT)


def changed(model, params, batch, place):
    """Positions of row 0 whose logits are not the same bits once the token at `place` is another."""
    other = {**batch, "tokens_BT": batch["tokens_BT"].copy()}
    other["tokens_BT"][0, place] = (other["tokens_BT"][0, place] + 1) % 97
    before, after = (np.asarray(logits_of(model, params, one))[0] for one in (batch, other))
    return np.flatnonzero(np.any(before != after, axis=-1))


# ---------------------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize(
    "layers, width, heads, head_dim, rotary_dim, parameters",
    [
        (20, 1024, 16, 64, 32, 356_712_448),
        (32, 2560, 32, 80, 64, 2_779_356_160),
        (33, 4096, 16, 256, 64, 7_064_213_504),
        (16, 2048, 16, 128, 64, 1_015_306_240),
        (16, 4096, 16, 256, 64, 3_641_174_016),
        (32, 4096, 16, 256, 64, 6_862_858_240),
        (34, 6144, 24, 256, 64, 16_032_155_648),
    ],
)
def test_published_shapes_have_the_published_numbers_of_parameters(
    layers, width, heads, head_dim, rotary_dim, parameters
):
    config = CodeGenConfig(
        vocab_size=51200, d_model=width, d_ff=4 * width, num_layers=layers, num_heads=heads, head_dim=head_dim,
        rotary_dim=rotary_dim,
    )  # fmt: skip
    assert DecoderOnly(config).parameters() == parameters


def test_codegen25_and_a_real_array_count():
    config = LlamaConfig(
        vocab_size=51200, d_model=4096, d_ff=11008, num_layers=32, num_heads=32, num_kv_heads=32, head_dim=128
    )
    assert DecoderOnly(config).parameters() == 6_895_702_016
    tiny = CodeGenConfig(
        vocab_size=512, d_model=64, d_ff=256, num_layers=2, num_heads=4, head_dim=16, rotary_dim=8
    )  # fmt: skip
    params = DecoderOnly(tiny).init_params(jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 165_376 == DecoderOnly(tiny).parameters()


@FAMILIES
def test_every_weight_has_its_axes(config):
    model = DecoderOnly(config)
    shapes, axes = model.param_shapes, model.param_axes()
    is_axes = lambda node: isinstance(node, tuple)  # noqa: E731
    assert jax.tree.structure(shapes) == jax.tree.structure(axes, is_leaf=is_axes)
    for shape, names in zip(jax.tree.leaves(shapes), jax.tree.leaves(axes, is_leaf=is_axes), strict=True):
        assert len(shape.shape) == len(names)


def test_initial_values_have_the_spread_of_jaxformer():
    config = CodeGenConfig(
        vocab_size=4096, d_model=256, d_ff=1024, num_layers=4, num_heads=8, head_dim=32, rotary_dim=16
    )  # fmt: skip
    params = DecoderOnly(config).init_params(jax.random.key(0))
    layers = params["decoder"]["layers"]
    cut = 0.880  # what two standard deviations leave of a normal distribution's
    for values, std in [
        (params["embedding"], 4096**-0.5),
        (params["head"], 256**-0.5),
        (layers["attention"]["q"], 256**-0.5),
        (layers["mlp"]["wi"], 256**-0.5),
        (layers["mlp"]["wo"], 2 / 4 * 256**-0.5),
        (layers["attention"]["o"], 2 / 4 * 256**-0.5),
    ]:
        assert abs(float(jnp.std(values)) / (cut * std) - 1) < 0.01
        assert float(jnp.max(jnp.abs(values))) <= 2.0001 * std
    assert not np.any(params["head_bias"]) and not np.any(layers["mlp"]["wi_bias"]) and np.all(layers["norm"]["scale"])


# ----------------------------------------------------------------------------------------------------------- masks


@FAMILIES
def test_a_causal_decoder_sees_nothing_ahead(config, tokens_BT):
    model, params = DecoderOnly(config), drawn(config)
    np.testing.assert_array_equal(changed(model, params, packed(tokens_BT), 5), np.arange(5, T))


@FAMILIES
def test_a_prefix_is_seen_in_both_directions_and_nothing_else_is(config, tokens_BT):
    config = dataclasses.replace(config, prefix_lm=True)
    model, params = DecoderOnly(config), drawn(config)
    batch = packed(tokens_BT, prefixes=np.broadcast_to(np.arange(T) < 6, tokens_BT.shape))
    np.testing.assert_array_equal(changed(model, params, batch, 4), np.arange(T))
    np.testing.assert_array_equal(changed(model, params, batch, 8), np.arange(8, T))


@FAMILIES
def test_a_prefix_of_nothing_is_the_causal_model(config, tokens_BT):
    params = drawn(config)
    causal = logits_of(DecoderOnly(config), params, packed(tokens_BT))
    prefix = logits_of(DecoderOnly(dataclasses.replace(config, prefix_lm=True)), params, packed(tokens_BT))
    np.testing.assert_array_equal(causal, prefix)


@FAMILIES
@pytest.mark.parametrize("restarts", [False, True], ids=["continued", "restarted"])
@pytest.mark.parametrize("prefix_lm", [False, True])
def test_documents_kept_apart_are_as_if_alone(config, restarts, prefix_lm, tokens_BT):
    config = dataclasses.replace(config, attend_across_documents=False, prefix_lm=prefix_lm)
    model, params = DecoderOnly(config), drawn(config)
    segments_BT = np.where(np.arange(T) < 7, 1, 2)[None].repeat(2, 0)
    positions_BT = np.where(np.arange(T) < 7, np.arange(T), np.arange(T) - 7 * restarts)[None].repeat(2, 0)
    prefixes = (np.arange(T) < 3) | ((np.arange(T) >= 7) & (np.arange(T) < 9))
    prefixes_BT = np.broadcast_to(prefixes, tokens_BT.shape)
    both = logits_of(model, params, packed(tokens_BT, segments_BT, prefixes_BT, positions_BT))
    for part in (slice(0, 7), slice(7, T)):
        alone = logits_of(model, params, packed(tokens_BT[:, part], prefixes=prefixes_BT[:, part]))
        np.testing.assert_allclose(both[:, part], alone, atol=1e-5)


@FAMILIES
def test_documents_see_those_before_them_unless_kept_apart(config, tokens_BT):
    segments_BT = np.where(np.arange(T) < 7, 1, 2)[None].repeat(2, 0)
    params = drawn(config)
    assert changed(DecoderOnly(config), params, packed(tokens_BT, segments_BT), 2)[-1] == T - 1
    apart = DecoderOnly(dataclasses.replace(config, attend_across_documents=False))
    assert changed(apart, params, packed(tokens_BT, segments_BT), 2)[-1] == 6


@FAMILIES
def test_padding_stays_finite_and_its_tokens_mean_nothing(config, tokens_BT):
    model, params = DecoderOnly(config), drawn(config)
    # On the left, where it could hurt.
    segments_BT = np.broadcast_to(np.arange(T) >= 4, tokens_BT.shape).astype(np.int32)
    batch = packed(tokens_BT, segments_BT)
    logits = logits_of(model, params, batch)
    assert np.all(np.isfinite(logits))
    other = {**batch, "tokens_BT": np.where(segments_BT > 0, tokens_BT, 0)}
    np.testing.assert_array_equal(logits[:, 4:], logits_of(model, params, other)[:, 4:])


@FAMILIES
def test_positions_count_by_their_differences_alone(config, tokens_BT):
    model, params = DecoderOnly(config), drawn(config)
    batch = packed(tokens_BT)
    moved = {**batch, "positions_BT": batch["positions_BT"] + 40}
    np.testing.assert_allclose(logits_of(model, params, batch), logits_of(model, params, moved), atol=2e-5)
    apart = {**batch, "positions_BT": 2 * batch["positions_BT"]}
    assert np.max(np.abs(logits_of(model, params, batch) - logits_of(model, params, apart))) > 1e-2


@FAMILIES
def test_a_sequence_beyond_the_models_positions_is_refused_unless_asked_for(config):
    tokens_BT = np.zeros((1, 65), np.int32)
    with pytest.raises(UserError, match="65 positions exceeds the model's max_positions=64"):
        DecoderOnly(config).logits(drawn(config), packed(tokens_BT))
    DecoderOnly(dataclasses.replace(config, allow_extrapolation=True)).logits(drawn(config), packed(tokens_BT))


# ----------------------------------------------------------------------------------------------------------- cache


@FAMILIES
@pytest.mark.parametrize("prefix_lm, left", [(False, True), (True, False)], ids=["causal-left", "prefix-right"])
def test_step_by_step_equals_the_whole_pass_for_prompts_of_unequal_length(config, prefix_lm, left, tokens_BT):
    config = dataclasses.replace(config, prefix_lm=prefix_lm)
    model, params = DecoderOnly(config), drawn(config)
    lengths, S, steps = (6, 3), 7, 5
    inputs_BS, mask_BS = np.full((2, S), 13, np.int32), np.zeros((2, S), bool)
    for row, length in enumerate(lengths):
        at = slice(S - length, S) if left else slice(0, length)
        inputs_BS[row, at], mask_BS[row, at] = tokens_BT[row, :length], True
    whole = []
    for row, length in enumerate(lengths):
        prefixes = (np.arange(T) < length)[None]
        whole.append(np.asarray(logits_of(model, params, packed(tokens_BT[row : row + 1], prefixes=prefixes)))[0])
    logits_BV, encoded, mask_BS = prefilled(model, params, inputs_BS, mask_BS)
    decoder = model.decoder_params(params)
    cache = model.start_decoding(decoder, encoded, mask_BS, max_length=2, num_beams=3)
    for i in range(steps + 1):
        for row, length in enumerate(lengths):
            np.testing.assert_allclose(logits_BV[row], whole[row][length - 1 + i], atol=1e-5)
        if i == 2:
            cache = model.grow_decoding(cache, steps, num_beams=3)
        if i < steps:
            fed_B = np.stack([tokens_BT[row, length + i] for row, length in enumerate(lengths)])
            logits_BKV, cache = stepped(model, decoder, cache, np.repeat(fed_B[:, None], 3, axis=1), i)
            np.testing.assert_allclose(logits_BKV[:, 2], logits_BKV[:, 0], atol=1e-6)
            logits_BV = logits_BKV[:, 1]


@FAMILIES
def test_beams_find_their_past_where_the_ancestry_says(config, tokens_BT):
    model, params = DecoderOnly(config), drawn(config)
    mask_BS = np.ones((1, 4), bool)
    _, encoded, mask_BS = prefilled(model, params, tokens_BT[:1, :4], mask_BS)
    decoder = model.decoder_params(params)
    cache = model.start_decoding(decoder, encoded, mask_BS, max_length=3, num_beams=2)
    _, cache = stepped(model, decoder, cache, np.array([[1, 2]]), 0)
    _, cache = stepped(model, decoder, cache, np.array([[3, 4]]), 1, np.array([[[1, 0, 0], [0, 0, 0]]]))
    # The second step put 3 behind 2 (slot 0) and 4 behind 1 (slot 1); both beams of the third stand on one of them.
    for slots, tokens in (((1, 0, 0), (2, 3)), ((0, 1, 0), (1, 4))):
        logits_BKV, _ = stepped(model, decoder, cache, np.array([[7, 7]]), 2, np.array([[slots, slots]]))
        sequence = np.concatenate([tokens_BT[0, :4], tokens, [7]]).astype(np.int32)
        whole = logits_of(model, params, packed(sequence[None]))
        for beam in (0, 1):
            np.testing.assert_allclose(logits_BKV[0, beam], whole[0, -1], atol=1e-5)


# ----------------------------------------------------------------------------------------------------------- pairs


@FAMILIES
@pytest.mark.parametrize("prefix_lm", [False, True])
def test_a_pair_is_its_source_its_start_and_its_target_in_one_sequence(config, prefix_lm, tokens_BT):
    config = dataclasses.replace(config, prefix_lm=prefix_lm)
    model, params = DecoderOnly(config), drawn(config)
    mask_BS = np.arange(7)[None] < np.array([[7], [4]])
    pair = {"inputs_BS": tokens_BT[:, :7], "inputs_mask_BS": mask_BS, "decoder_inputs_BT": tokens_BT[:, 7:]}
    logits = logits_of(model, params, pair)
    for row, length in enumerate((7, 4)):
        sequence = np.concatenate([tokens_BT[row, :length], tokens_BT[row, 7:]])[None]
        batch = packed(sequence, prefixes=(np.arange(sequence.shape[1]) < length)[None])
        np.testing.assert_allclose(logits[row], logits_of(model, params, batch)[0, length:], atol=1e-5)


@FAMILIES
def test_a_prompt_stands_before_the_source(config, tokens_BT):
    """Vectors that are embeddings of tokens are those tokens."""
    model, params = DecoderOnly(config), drawn(config)
    source_BS, mask_BS = tokens_BT[:, 3:7], np.ones((2, 4), bool)
    prompt_BPD = model.embed(params, tokens_BT[:, :3])
    pair = {"inputs_BS": source_BS, "inputs_mask_BS": mask_BS, "decoder_inputs_BT": tokens_BT[:, 7:]}
    whole = logits_of(model, params, packed(tokens_BT))
    logits = jax.jit(model.logits)(params, pair, prompt_BPD)
    np.testing.assert_allclose(logits, whole[:, 7:], atol=1e-5)
    logits_BV, _, mask = prefilled(model, params, source_BS, mask_BS, prompt_BPD)
    np.testing.assert_allclose(logits_BV, whole[:, 6], atol=1e-5)
    assert mask.shape == (2, 7)


@FAMILIES
def test_the_query_is_the_mean_or_the_last_state_and_ignores_padding(config, tokens_BT):
    model, params = DecoderOnly(dataclasses.replace(config, dtype="bfloat16")), drawn(config)
    mask_BS = np.arange(T)[None] < np.array([[5], [12]])
    query_of = jax.jit(model.query, static_argnames="pooling")
    query = query_of(params, tokens_BT, mask_BS)
    alone = query_of(params, tokens_BT[:1, :5], np.ones((1, 5), bool))
    assert query.dtype == jnp.float32
    np.testing.assert_allclose(query[0], alone[0], atol=1e-5)
    last = query_of(params, tokens_BT, mask_BS, pooling="last")
    assert np.max(np.abs(last - query)) > 1e-2
    with pytest.raises(UserError, match="'first' means nothing for a decoder"):
        model.query(params, tokens_BT, mask_BS, pooling="first")


# ------------------------------------------------------------------------------------------------- remat and dtypes


@FAMILIES
def test_remat_changes_no_gradient_and_bfloat16_stays_close(config, tokens_BT):
    params, batch = drawn(config), packed(tokens_BT)

    def loss(params, config):
        logits_BTV = logits_of(DecoderOnly(config), params, batch)
        return -jnp.mean(jax.nn.log_softmax(logits_BTV)[..., 0])

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    plain, remat = gradient(params, config), gradient(params, dataclasses.replace(config, remat="full"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, remat)
    logits = logits_of(DecoderOnly(dataclasses.replace(config, dtype="bfloat16")), params, batch)
    assert logits.dtype == jnp.float32
    exact = logits_of(DecoderOnly(config), params, batch)
    assert 0 < np.max(np.abs(logits - exact)) < 0.1 * np.max(np.abs(exact))


@FAMILIES
def test_dropout_needs_its_key_and_is_a_function_of_it(config, tokens_BT):
    config = dataclasses.replace(config, dropout_rate=0.3)
    model, params = DecoderOnly(config), drawn(config)
    batch, keys = packed(tokens_BT), jax.random.split(jax.random.key(1))
    noisy = jax.jit(lambda key: model.logits(params, batch, dropout_key=key))
    first = noisy(keys[0])
    np.testing.assert_array_equal(first, noisy(keys[0]))
    assert np.any(first != noisy(keys[1]))
    assert np.any(first != logits_of(model, params, batch))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rotary_dim": 3}, "rotary_dim=3 must be even and at most head_dim=8"),
        ({"rotary_dim": 16}, "rotary_dim=16 must be even"),
        ({"num_layers": 0}, "num_layers=0 is no integer from 1"),
        ({"dtype": "float16"}, "dtype='float16' is unknown"),
        ({"eos_token_id": 97}, "eos_token_id=97 is outside vocab_size=97"),
        ({"initialisation": "xavier"}, "initialisation='xavier' is unknown"),
    ],
)
def test_a_wrong_shape_is_refused_by_name(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CODEGEN, **change)


def test_key_heads_must_divide_the_query_heads():
    with pytest.raises(UserError, match="num_kv_heads=3 must divide num_heads=4"):
        dataclasses.replace(LLAMA, num_kv_heads=3)
