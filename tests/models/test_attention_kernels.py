"""Kernels of attention against XLA's own products: splash in Pallas' interpreter, and what is refused where."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codegen2_jax.errors import UserError
from codegen2_jax.models import attention_kernels, layers
from codegen2_jax.models.attention_kernels import Visible, attend, choose, prepared
from codegen2_jax.models.codegen import CodeGenConfig
from codegen2_jax.models.decoder_only import DecoderOnly
from codegen2_jax.models.t5 import T5Config
from codegen2_jax.sharding import partitioning
from codegen2_jax.training import attention_choice

B, T, G, R, H = 2, 40, 2, 2, 8
SHAPE = dict(vocab_size=64, d_model=32, d_ff=128, num_layers=2, num_heads=4, head_dim=8, rotary_dim=4)
CONFIG = CodeGenConfig(**SHAPE)
TRUE_BT = np.arange(T)[None] < np.asarray([T, 29])[:, None]
SEGMENTS_BT = np.where(TRUE_BT, 1 + (np.arange(T) > 11), 0).astype(np.int32)
LEFT_BT = np.arange(T)[None] >= np.asarray([0, 7])[:, None]
VISIBLE = {
    "causal": Visible(TRUE_BT, segments_BT=SEGMENTS_BT, ends_padded=True),
    "documents apart": Visible(TRUE_BT, segments_BT=SEGMENTS_BT, across=False, ends_padded=True),
    "padding in front": Visible(LEFT_BT),
    "prefix": Visible(LEFT_BT, prefix=13),
}


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setattr(attention_kernels, "INTERPRET", True)


def drawn(batch=B):
    rng = np.random.default_rng(0)
    q, out = (rng.normal(size=(batch, T, G, R, H)).astype(np.float32) for _ in range(2))
    return (q / H**0.5, *(rng.normal(size=(batch, T, G, H)).astype(np.float32) for _ in range(2))), out


def computed(name, visible, arguments, gradient):
    """The output where a position is true, and the gradients of q, k and v."""

    def mixed(*arguments):
        out = attend(name, *arguments, prepared(name, visible))
        return jnp.where(jnp.asarray(visible.valid_BT)[:, :, None, None, None], out, 0)

    def both(*arguments):
        out, pull = jax.vjp(mixed, *arguments)
        return out, *pull(gradient)

    return jax.jit(both)(*arguments)


@pytest.mark.parametrize("name", ["documents apart", "prefix"])  # each form of mask once; the others are parts of them
def test_splash_computes_what_xla_computes(name, interpreted):
    arguments, gradient = drawn()
    own, other = (computed(kernel, VISIBLE[name], arguments, jnp.asarray(gradient)) for kernel in ("splash", "xla"))
    for one, reference in zip(own, other, strict=True):
        np.testing.assert_allclose(one, reference, atol=2e-5)


CUTS = {
    "rows and heads": ({"data": 4, "model": 2}, None),
    "queries of a key head": ({"data": 4, "model": 2}, {"kv_heads": None, "group": "model"}),
    "positions": ({"data": 2, "fsdp": 2, "model": 2}, {"batch": "data", "sequence": "fsdp", "length": "fsdp"}),
}


@pytest.mark.parametrize("name", CUTS)
def test_splash_is_cut_among_devices(name, interpreted):
    arguments, gradient = drawn(batch=4)
    visible = Visible(np.arange(T)[None] >= np.arange(4)[:, None])
    expected = computed("xla", visible, arguments, gradient)
    with attention_kernels.split_by(partitioning.Split(partitioning.make_layout(*CUTS[name]))):
        found = computed("splash", visible, arguments, gradient)
    for one, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, reference, atol=2e-5)


def test_a_prefix_is_the_same_known_or_marked():
    marked = Visible(
        LEFT_BT, segments_BT=np.ones_like(SEGMENTS_BT), bidirectional_BT=np.arange(T)[None].repeat(B, 0) < 13
    )
    np.testing.assert_array_equal(VISIBLE["prefix"].bias(), marked.bias())


def test_a_decoder_with_splash_has_the_same_logits(interpreted):
    rng = np.random.default_rng(0)
    batch = {
        "inputs_BS": rng.integers(0, 64, (2, 9)).astype(np.int32),
        "inputs_mask_BS": np.arange(9)[None] >= np.asarray([0, 4])[:, None],
        "decoder_inputs_BT": rng.integers(0, 64, (2, 6)).astype(np.int32),
    }
    params = jax.jit(DecoderOnly(CONFIG).init_params)(jax.random.key(0))
    logits = [
        jax.jit(DecoderOnly(dataclasses.replace(CONFIG, attention=name)).logits)(params, batch)
        for name in ("splash", "xla")
    ]
    np.testing.assert_allclose(*logits, atol=2e-5)


def test_every_backend_has_its_kernel_and_the_rest_is_refused():
    half = dataclasses.replace(CONFIG, dtype="bfloat16")
    assert choose(dataclasses.replace(half, attention="auto"), "cpu")[0] == "xla"
    assert choose(dataclasses.replace(half, attention="auto"), "gpu")[0] == "cudnn"
    assert choose(dataclasses.replace(half, attention="auto"), "tpu")[0] == "splash"
    name, why = choose(dataclasses.replace(CONFIG, attention="auto"), "gpu")
    assert name == "xla" and "bfloat16" in why
    t5 = T5Config(
        vocab_size=64, d_model=16, d_ff=32, num_encoder_layers=1, num_decoder_layers=1, num_heads=2, head_dim=8
    )
    assert choose(dataclasses.replace(t5, attention="auto", dtype="bfloat16"), "gpu")[0] == "xla"
    for config, platform, message in (
        (half, "cpu", "'cudnn' needs an NVIDIA GPU, and this is a CPU; use 'auto' or 'xla'"),
        (CONFIG, "gpu", "'cudnn' computes in bfloat16"),
        (dataclasses.replace(half, head_dim=9, rotary_dim=4), "gpu", "'cudnn' has heads of multiples of 8"),
        (dataclasses.replace(t5, dtype="bfloat16"), "gpu", "relative position bias"),
    ):
        with pytest.raises(UserError, match=message):
            choose(dataclasses.replace(config, attention="cudnn"), platform)
    with pytest.raises(UserError, match="'splash' needs a TPU"):
        choose(dataclasses.replace(CONFIG, attention="splash"), "cpu")
    assert choose(dataclasses.replace(half, attention="auto"), "tpu", 8)[0] == "splash"
    name, why = choose(dataclasses.replace(half, attention="auto"), "gpu", 8)
    assert name == "xla" and "cuts their positions ('length') among 8 devices" in why
    with pytest.raises(UserError, match="prefix_lm"):
        choose(dataclasses.replace(CONFIG, attention="splash", prefix_lm=True), "tpu")


def test_a_run_tries_its_kernel_before_the_first_step(interpreted, monkeypatch, caplog):
    monkeypatch.setitem(attention_kernels.KERNEL_OF, "cpu", "splash")
    layout = partitioning.make_layout(devices=jax.devices()[:1])
    asked = DecoderOnly(dataclasses.replace(CONFIG, attention="splash", attend_across_documents=False))
    with caplog.at_level("INFO"):
        assert attention_choice.resolved(asked, layout, length=T).config.attention == "splash"
    assert "attention: splash (asked for); differs from xla by" in caplog.text

    # A kernel that sees the documents before: found out, and refused where it was asked for.
    right = attention_kernels._splash
    monkeypatch.setattr(
        attention_kernels, "_splash", lambda q, k, v, mask: right(q, k, v, mask.replace(segments_BT=None))
    )
    with pytest.raises(UserError, match="attention splash differs from xla by"):
        attention_choice.resolved(asked, layout, length=T)
    auto = DecoderOnly(dataclasses.replace(asked.config, attention="auto"))
    assert attention_choice.resolved(auto, layout, length=T).config.attention == "xla"
    assert "going on with xla" in caplog.text


def kept(remat, attention="xla"):
    """The shapes of what the scan over layers hands to its backward pass, by a trace."""
    tokens = np.zeros((2, 16), np.int32)
    batch = {"tokens_BT": tokens, "positions_BT": tokens, "segments_BT": tokens + 1}
    if attention == "xla":
        batch["bidirectional_BT"] = tokens > 0
    model = DecoderOnly(dataclasses.replace(CONFIG, remat=remat, attention=attention))
    params = jax.eval_shape(model.init_params, jax.random.key(0))
    traced = jax.make_jaxpr(lambda p: jax.vjp(lambda p: model.last_states(p, batch), p))(params)
    scan = next(equation for equation in traced.jaxpr.eqns if equation.primitive.name == "scan")
    return [tuple(out.aval.shape) for out in scan.outvars]


def test_a_policy_keeps_what_its_name_says():
    wide, scores = (2, 2, 16, 128), (2, 2, 4, 1, 16, 16)
    shapes = {remat: kept(remat) for remat in layers.REMATS}
    assert wide not in shapes["full"] and scores not in shapes["full"]
    assert shapes["dots_no_batch"].count(wide) == 1 and scores not in shapes["dots_no_batch"]
    assert shapes["dots"].count(wide) == 1 and shapes["dots"].count(scores) == 1
    # GELU keeps its input and nothing else of that size: the input, and the output that wo's gradient needs.
    assert shapes["none"].count(wide) <= 3
    assert scores not in shapes["none"]  # which cost less to make again than to write and read
    with pytest.raises(UserError, match="remat='ful'.*'full'"):
        dataclasses.replace(CONFIG, remat="ful")


def test_a_kernel_does_not_run_again_where_products_are_kept():
    """What its backward pass reads: the mixed values and the scale of each row, both filled up to a tile."""
    mixed, scales = (2, 2, 4, 128, 128), (2, 2, 4, 128)
    shapes = {remat: kept(remat, "splash") for remat in layers.REMATS}
    for remat, count in {"none": 1, "dots": 1, "dots_no_batch": 0, "full": 0}.items():
        assert shapes[remat].count(scales) == count, remat
        assert (mixed in shapes[remat]) == bool(count), remat


@pytest.fixture
def cudnn_in_name(monkeypatch):
    """cuDNN's call, computed by XLA: what surrounds it runs without a GPU."""
    right = jax.nn.dot_product_attention
    lengths = []

    def stand_in(q, k, v, *, implementation, **options):
        assert implementation == "cudnn"
        lengths.append(q.shape[1])
        return right(q, k, v, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    return lengths


@pytest.mark.parametrize("name", ["causal", "documents apart", "prefix"])
def test_cudnn_is_given_an_even_number_of_positions(name, cudnn_in_name):
    """Its backward pass takes no other; a window without its last token has one less than a power of two."""
    q, k, v = (x[:, : T - 1] for x in drawn()[0])
    gradient = jnp.asarray(drawn()[1][:, : T - 1])
    segments = None if VISIBLE[name].segments_BT is None else SEGMENTS_BT[:, : T - 1]
    visible = VISIBLE[name].replace(valid_BT=VISIBLE[name].valid_BT[:, : T - 1], segments_BT=segments)
    own, other = (computed(kernel, visible, (q, k, v), gradient) for kernel in ("cudnn", "xla"))
    assert set(cudnn_in_name) == {T}
    for one, reference in zip(own, other, strict=True):
        np.testing.assert_allclose(one, reference, atol=2e-5)


def test_a_kernel_that_cannot_run_gives_way(monkeypatch, caplog):
    """cuDNN is missing here, as it is on another maker's GPU."""
    monkeypatch.setitem(attention_kernels.KERNEL_OF, "cpu", "cudnn")
    layout = partitioning.make_layout(devices=jax.devices()[:1])
    half = dataclasses.replace(CONFIG, dtype="bfloat16", attention="auto")
    assert attention_choice.resolved(DecoderOnly(half), layout, length=T).config.attention == "xla"
    assert "attention cudnn does not run here" in caplog.text and "going on with xla" in caplog.text
    asked = DecoderOnly(dataclasses.replace(half, attention="cudnn"))
    with pytest.raises(UserError, match="attention cudnn does not run here .*; set ATTENTION='xla'"):
        attention_choice.resolved(asked, layout, length=T)


def test_a_long_context_is_tried_at_a_part_of_it(monkeypatch):
    """Of the same remainder by the kernel's tiles; all scores of 32,768 positions would not fit a device."""
    tried = []
    monkeypatch.setattr(attention_choice, "self_check", lambda config, name, length: tried.append(length) or 0.0)
    monkeypatch.setitem(attention_kernels.KERNEL_OF, "cpu", "splash")
    layout = partitioning.make_layout(devices=jax.devices()[:1])
    for length in (300, 2048, 32767, 32768):
        attention_choice.resolved(DecoderOnly(dataclasses.replace(CONFIG, attention="auto")), layout, length=length)
    assert tried == [300, 2048, 2047, 1536]


def test_cut_positions_leave_every_device_as_many_tiles():
    """The masks of tiles that the kernel is given, by a trace; cut where they stand, they would hold 3 and 7."""
    mesh, axes = CUTS["positions"]
    q = jax.ShapeDtypeStruct((2, 2048, G, R, H), jnp.float32)
    k = jax.ShapeDtypeStruct((2, 2048, G, H), jnp.float32)
    visible = Visible(np.ones((2, 2048), bool), ends_padded=True)
    with attention_kernels.split_by(partitioning.Split(partitioning.make_layout(mesh, axes))):
        traced = jax.make_jaxpr(lambda *qkv: attend("splash", *qkv, prepared("splash", visible)))(q, k, k)
    # [1, tiles of queries, of keys]: 0 nothing of a tile, 1 a part, 2 the whole; others hold numbers of tiles, 0 to 3
    tiles = [np.asarray(one) for one in traced.consts if np.shape(one) == (1, 4, 4)]
    masks = [one for one in tiles if one.max() == 2]
    assert masks
    for mask_1QK in masks:
        counts = [np.count_nonzero(part) for part in np.split(mask_1QK, 2, axis=1)]
        assert counts[0] == counts[1], counts
