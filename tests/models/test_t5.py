"""The T5 network: against transformers where it is installed, and by its own promises."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codegen2_jax.errors import UserError
from codegen2_jax.models.attention import relative_buckets
from codegen2_jax.models.language_models import EncoderDecoder
from codegen2_jax.models.layers import dropout, seeds
from codegen2_jax.models.t5 import T5Config

TINY = T5Config(
    vocab_size=97, d_model=32, d_ff=64, num_encoder_layers=2, num_decoder_layers=2, num_heads=4, head_dim=8,
    dropout_rate=0.1,
)  # fmt: skip
MODEL = EncoderDecoder(TINY)


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init_params)(jax.random.key(0))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 97, (3, 19), dtype=np.int32)
    mask = np.arange(12)[None] < np.array([12, 7, 1])[:, None]
    return {"inputs_BS": tokens[:, :12], "inputs_mask_BS": mask, "decoder_inputs_BT": tokens[:, 12:]}


# ------------------------------------------------------------------------------------------------ against transformers


def cross_entropy(model, params, batch):
    logits_BTV = model.logits(params, batch)
    picked_BT = jnp.take_along_axis(logits_BTV, batch["targets_BT"][..., None], axis=-1)[..., 0]
    mask_BT = batch["loss_mask_BT"]
    loss_BT = (jax.nn.logsumexp(logits_BTV, axis=-1) - picked_BT) * mask_BT
    return jnp.sum(loss_BT) / jnp.sum(mask_BT), logits_BTV


@pytest.mark.parametrize("tied", [True, False], ids=["tied-relu", "untied-gated-gelu"])
@pytest.mark.parametrize("source_length, target_length", [(13, 9), (200, 160)])
def test_loss_logits_and_every_gradient_equal_transformers(tmp_path, tied, source_length, target_length):
    torch_t5 = pytest.importorskip("torch_t5")
    from codegen2_jax.interop import huggingface

    torch_t5.save_random_t5(tmp_path, tied=tied)
    reference = torch_t5.load(tmp_path)
    config, params = huggingface.load(tmp_path)
    model = EncoderDecoder(config)
    batch = torch_t5.random_batch(source_length=source_length, target_length=target_length)
    their_loss, their_logits = torch_t5.reference_loss(reference, batch)
    their_loss.backward()
    step = jax.jit(jax.value_and_grad(lambda p: cross_entropy(model, p, batch), has_aux=True))
    (loss, logits), gradients = step(params)

    assert 1.0 < np.abs(their_logits).max() < 30.0, "weights of this size prove nothing"
    np.testing.assert_allclose(logits, their_logits, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(np.argmax(logits, -1), np.argmax(their_logits, -1))
    assert abs(float(loss) - their_loss.item()) < 1e-5
    theirs = {name: weight.grad.numpy() for name, weight in reference.named_parameters()}
    ours = huggingface.to_their_weights(config, gradients)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        limit = 1e-4 * np.abs(theirs[name]).max()
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=limit, err_msg=name)


@pytest.mark.parametrize("tied, break_it", [(True, "scale"), (False, "scale"), (True, "attention")])
def test_wrong_scaling_would_be_seen(tmp_path, tied, break_it):
    torch_t5 = pytest.importorskip("torch_t5")
    from codegen2_jax.interop.huggingface import load

    torch_t5.save_random_t5(tmp_path, tied=tied)
    config, params = load(tmp_path)
    batch = torch_t5.random_batch(source_length=13, target_length=9)
    _, theirs = torch_t5.reference_loss(torch_t5.load(tmp_path), batch)
    if break_it == "scale":  # no d^-0.5 for a tied head, or one for an untied head
        config = dataclasses.replace(config, scale_decoder_outputs=not config.scales_outputs)
    else:  # attention logits divided by sqrt(head width)
        for stack in ("encoder", "decoder"):
            layers = params[stack]["layers"]
            for name in layers.keys() & {"attention", "cross_attention"}:
                layers[name]["q"] = layers[name]["q"] / np.sqrt(config.head_dim)
    ours = jax.jit(EncoderDecoder(config).logits)(params, batch)
    assert np.abs(ours - theirs).max() > 1e-2


# ---------------------------------------------------------------------------------------------------- shape and numbers


@pytest.mark.parametrize(
    "vocab_size, d_model, d_ff, layers, heads, parameters",
    [
        (32128, 512, 2048, 6, 8, 60_506_624),  # T5-small
        (32128, 768, 3072, 12, 12, 222_903_552),  # T5-base
        (32128, 1024, 4096, 24, 16, 737_668_096),  # T5-large
        (32100, 512, 2048, 6, 8, 60_492_288),  # CodeT5-small
        (32100, 768, 3072, 12, 12, 222_882_048),  # CodeT5-base
        (32100, 1024, 4096, 24, 16, 737_639_424),  # CodeT5-large
    ],
)
def test_parameter_counts_of_published_models(vocab_size, d_model, d_ff, layers, heads, parameters):
    config = T5Config(
        vocab_size=vocab_size, d_model=d_model, d_ff=d_ff, num_encoder_layers=layers, num_decoder_layers=layers,
        num_heads=heads, head_dim=64,
    )  # fmt: skip
    assert EncoderDecoder(config).parameters() == parameters


@pytest.mark.parametrize(
    "bidirectional, expected",
    [
        (
            True,
            {-130: 15, -16: 10, -10: 8, -5: 5, 0: 0, 1: 17, 5: 21, 8: 24, 10: 24, 15: 25, 16: 26, 20: 26}
            | {70: 30, 130: 31},
        ),
        (
            False,
            {0: 0, -1: 1, -15: 15, -18: 16, -19: 17, -20: 17, -24: 19, -31: 21, -63: 26, -90: 29, -113: 31}
            | {-500: 31, 7: 0},
        ),
    ],
)
def test_relative_buckets_of_the_reference(bidirectional, expected):
    buckets_QS = relative_buckets(600, 600, bidirectional=bidirectional, buckets=32, max_distance=128)
    middle = 550 if not bidirectional else 300
    assert {distance: int(buckets_QS[middle, middle + distance]) for distance in expected} == expected


def test_every_weight_has_one_axis_name_per_dimension(params):
    for shape, array in zip(jax.tree.leaves(MODEL.param_shapes), jax.tree.leaves(params), strict=True):
        assert array.shape == shape.shape and array.dtype == jnp.float32
    axes = jax.tree.leaves_with_path(MODEL.param_axes(), is_leaf=lambda leaf: isinstance(leaf, tuple))
    arrays = jax.tree.leaves_with_path(params)
    assert [path for path, _ in axes] == [path for path, _ in arrays]
    known = {"layers", "vocab", "embed", "heads", "head_dim", "mlp", "buckets", "norm"}
    for (path, names), (_, array) in zip(axes, arrays, strict=True):
        assert len(names) == array.ndim and set(names) <= known, path
        in_layer = any(getattr(key, "key", None) == "layers" for key in path)
        assert (names[0] == "layers") == in_layer, path


def test_initialisation_has_the_variances_of_t5(params):
    D, N, H, F = 32, 4, 8, 64
    expected = {"q": (D * H) ** -0.5, "k": D**-0.5, "v": D**-0.5, "o": (N * H) ** -0.5}
    layers = params["decoder"]["layers"]
    for name, std in expected.items():
        assert np.std(layers["cross_attention"][name]) == pytest.approx(std, rel=0.06)
        first, second = layers["cross_attention"][name]
        assert not np.array_equal(first, second), "layers must not start equal"
    assert np.std(layers["mlp"]["wi"]) == pytest.approx(D**-0.5, rel=0.06)
    assert np.std(layers["mlp"]["wo"]) == pytest.approx(F**-0.5, rel=0.06)
    assert np.std(params["embedding"]) == pytest.approx(1.0, rel=0.06)
    assert np.std(params["encoder"]["relative_bias"]) == pytest.approx(D**-0.5, rel=0.2)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"feed_forward": "swiglu"}, "feed_forward='swiglu'"),
        ({"dtype": "float16"}, "dtype='float16'"),
        ({"num_heads": 0}, "num_heads=0"),
        ({"dropout_rate": 1.0}, "dropout_rate=1.0"),
        ({"eos_token_id": 97}, "eos_token_id=97"),
        ({"relative_attention_buckets": 30}, "relative_attention_buckets=30"),
    ],
)
def test_a_config_that_cannot_be_is_refused(changes, words):
    with pytest.raises(UserError, match=words) as error:
        dataclasses.replace(TINY, **changes)
    assert "\n" not in str(error.value)


# ----------------------------------------------------------------------------------------------------- its own promises


def test_what_stands_in_padding_changes_nothing(params, batch):
    logits = jax.jit(MODEL.logits)
    other = {**batch, "inputs_BS": np.where(batch["inputs_mask_BS"], batch["inputs_BS"], 5)}
    np.testing.assert_array_equal(logits(params, batch), logits(params, other))
    wider = {**batch}
    wider["inputs_BS"] = np.pad(batch["inputs_BS"], ((0, 0), (0, 4)))
    wider["inputs_mask_BS"] = np.pad(batch["inputs_mask_BS"], ((0, 0), (0, 4)))
    np.testing.assert_allclose(logits(params, batch), logits(params, wider), rtol=0, atol=1e-5)


@jax.jit
def prompted_mask(params, batch, prompt_BP):
    inputs = batch["inputs_BS"], batch["inputs_mask_BS"], MODEL.embed(params, prompt_BP)
    return MODEL.encode(params, *inputs)[1]


def test_a_prompt_of_token_embeddings_equals_those_tokens(params, batch):
    prompt_BP = np.full((3, 4), 11, np.int32) + np.arange(4, dtype=np.int32)[None]
    longer = {**batch}
    longer["inputs_BS"] = np.concatenate([prompt_BP, batch["inputs_BS"]], axis=1)
    longer["inputs_mask_BS"] = np.concatenate([np.ones((3, 4), bool), batch["inputs_mask_BS"]], axis=1)
    logits = jax.jit(MODEL.logits)
    prompted = logits(params, batch, MODEL.embed(params, prompt_BP))
    np.testing.assert_allclose(prompted, logits(params, longer), rtol=0, atol=1e-5)
    assert np.abs(prompted - logits(params, batch)).max() > 1e-2
    np.testing.assert_array_equal(prompted_mask(params, batch, prompt_BP), longer["inputs_mask_BS"])


def test_query_is_the_mean_over_true_tokens_without_gradient(params, batch):
    inputs = batch["inputs_BS"], batch["inputs_mask_BS"]
    encoded_BSD, mask_BS = jax.jit(MODEL.encode)(params, *inputs)
    expected = np.stack([np.asarray(row)[keep].mean(0) for row, keep in zip(encoded_BSD, mask_BS, strict=True)])
    query = jax.jit(MODEL.query)
    np.testing.assert_allclose(query(params, *inputs), expected, rtol=0, atol=1e-5)
    half = EncoderDecoder(dataclasses.replace(TINY, dtype="bfloat16"))
    np.testing.assert_array_equal(query(params, *inputs), jax.jit(half.query)(params, *inputs))
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(MODEL.query(p, *inputs))))(params)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_bfloat16_compute_keeps_float32_logits_and_gradients(params, batch):
    half = EncoderDecoder(dataclasses.replace(TINY, dtype="bfloat16"))
    logits = jax.jit(half.logits)(params, batch)
    assert logits.dtype == jnp.float32 and half.embed(params, batch["inputs_BS"]).dtype == jnp.bfloat16
    exact = np.asarray(jax.jit(MODEL.logits)(params, batch))
    assert 0 < np.abs(logits - exact).max() < 0.05 * np.abs(exact).max()
    gradients = jax.eval_shape(jax.grad(lambda p: jnp.mean(half.logits(p, batch) ** 2)), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}


def test_rematerialisation_changes_no_gradient(params, batch):
    key = jax.random.key(5)

    def gradients(config):
        model = EncoderDecoder(config)
        return jax.jit(jax.grad(lambda p: jnp.mean(model.logits(p, batch, dropout_key=key) ** 2)))(params)

    plain, again = gradients(TINY), gradients(dataclasses.replace(TINY, remat="full"))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(a).max())


def test_no_scores_and_no_probabilities_are_kept_for_the_backward_pass(params, batch):
    """By a trace: what the scans over layers hand on has a row of every query, and none of a query's keys."""
    traced = jax.make_jaxpr(lambda p: jax.vjp(lambda p: MODEL.logits(p, batch), p))(params)
    scans = [equation for equation in traced.jaxpr.eqns if equation.primitive.name == "scan"]
    shapes = [out.aval.shape for scan in scans for out in scan.outvars]
    lengths = [batch[name].shape[1] for name in ("inputs_BS", "decoder_inputs_BT")]
    assert len(scans) == 2 and len(shapes) > 10
    squares = {(TINY.num_heads, queries, keys) for queries in lengths for keys in lengths}
    assert not [shape for shape in shapes if len(shape) == 5 and shape[2:] in squares]


@jax.jit
def start_decoding(params, batch):
    encoded_BSD, mask_BS = MODEL.encode(params, batch["inputs_BS"], batch["inputs_mask_BS"])
    decoder = MODEL.decoder_params(params)
    return decoder, MODEL.start_decoding(decoder, encoded_BSD, mask_BS, max_length=3)


def test_decoding_step_by_step_equals_the_whole_pass(params, batch):
    """In a cache that starts too small and grows, in rows of unequal source length."""
    decoder, cache = start_decoding(params, batch)
    step, rows = jax.jit(MODEL.decode_step), []
    for position in range(7):
        if position == 3:
            cache = MODEL.grow_decoding(cache, 7)
        logits_B1V, cache = step(decoder, cache, batch["decoder_inputs_BT"][:, position, None], position)
        rows.append(logits_B1V)
    expected = jax.jit(MODEL.logits)(params, batch)
    np.testing.assert_allclose(np.concatenate(rows, axis=1), expected, rtol=0, atol=1e-5)


# -------------------------------------------------------------------------------------------------------------- dropout


def masks(key, rate=0.1):
    """Kept or not, bool[12, 400, 100]: 3 sites of 2 layers in 2 stacks."""
    seeds_S2 = jnp.concatenate([seeds(key, stream, (2, 3)).reshape(6, 2) for stream in (0, 2)])
    return np.asarray(jax.jit(jax.vmap(lambda seed_2: dropout(jnp.ones((400, 100)), seed_2, rate)))(seeds_S2)) > 0


def test_dropout_keeps_its_share_and_scales_the_rest():
    for rate in (0.1, 0.5):
        kept = masks(jax.random.key(0), rate=rate).reshape(12, -1)
        shares = kept.mean(axis=1)
        np.testing.assert_allclose(shares, 1 - rate, atol=5 * np.sqrt(rate * (1 - rate) / kept.shape[1]))
        assert np.std(shares) > 0, "sites must not share a mask"
    seed = seeds(jax.random.key(0), 0, ())
    values = np.unique(dropout(jnp.ones((64, 64)), seed, 0.2))
    np.testing.assert_allclose(values, [0.0, 1.25])


def test_dropout_is_independent_across_layers_sites_steps_and_positions():
    base = jax.random.key(3)
    first, second = (masks(jax.random.fold_in(base, step)) for step in (7, 8))
    raw = masks(base), masks(jax.random.key(4))  # neighbouring keys that nothing has mixed yet
    flat = np.concatenate([first, second, *raw]).reshape(48, -1).astype(np.float64)
    correlation = np.corrcoef(flat)[np.triu_indices(48, 1)]
    assert np.abs(correlation).max() < 5 / np.sqrt(flat.shape[1])
    assert correlation.std() == pytest.approx(1 / np.sqrt(flat.shape[1]), rel=0.25)
    grid = first.reshape(-1, 400, 100)
    for lag in (1, 2, 3, 16, 64):  # along a row and down a column
        for a, b in ((grid[:, :, lag:], grid[:, :, :-lag]), (grid[:, lag:], grid[:, :-lag])):
            assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)
    counts = grid.reshape(-1, 16).sum(axis=1)  # sums of 16 neighbours are binomial
    assert counts.var() == pytest.approx(16 * 0.1 * 0.9, rel=0.05)


def test_dropout_masks_the_gradient_with_the_mask_of_the_value():
    seed = seeds(jax.random.key(1), 0, ())
    x = jnp.arange(1.0, 301.0).reshape(3, 100)
    value, pull = jax.vjp(lambda x: dropout(x, seed, 0.3), x)
    (gradient,) = pull(jnp.ones_like(x))
    np.testing.assert_allclose(gradient, value / x, rtol=1e-6)


def test_dropout_is_a_function_of_the_key_and_off_without_one(params, batch):
    logits = jax.jit(lambda key: MODEL.logits(params, batch, dropout_key=key))
    one, again, two = logits(jax.random.key(1)), logits(jax.random.key(1)), logits(jax.random.key(2))
    np.testing.assert_array_equal(one, again)
    plain = jax.jit(MODEL.logits)(params, batch)
    assert np.abs(one - two).max() > 1e-2 and np.abs(one - plain).max() > 1e-2
    off = EncoderDecoder(dataclasses.replace(TINY, dropout_rate=0.0))
    same = jax.jit(off.logits)(params, batch, dropout_key=jax.random.key(1))
    np.testing.assert_array_equal(same, plain)
