"""The head and its loss in blocks of tokens or of the vocabulary: the same numbers and gradients, no logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codegen2_jax.errors import UserError
from codegen2_jax.models.language_models import EncoderDecoder
from codegen2_jax.models.t5 import T5Config
from codegen2_jax.sharding import partitioning
from codegen2_jax.training import head_loss
from codegen2_jax.training.head_loss import Head
from codegen2_jax.training.step import Learner
from codegen2_jax.training.vocabulary_blocks import Layout

B, T, D = 3, 5, 16
ONE, SEVERAL = 1, 2  # devices that the logits lie on: blocks of tokens, of the vocabulary


def drawn(vocabulary, *, bias, dtype=np.float32):
    rng = np.random.default_rng(0)
    head = Head(
        rng.normal(size=(vocabulary, D)).astype(np.float32),
        rng.normal(size=vocabulary).astype(np.float32) if bias else None,
    )
    x_BTD = jnp.asarray(rng.normal(size=(B, T, D)), dtype)
    targets_BT = rng.integers(0, vocabulary, (B, T)).astype(np.int32)
    targets_BT[0] = np.argmax(np.asarray(head_loss.plain_logits(x_BTD, head))[0], axis=-1)  # some hits
    mask_BT = np.arange(T)[None] < np.asarray([T, 3, 0])[:, None]
    return x_BTD, head, targets_BT, mask_BT


def both(vocabulary, blocks, shards, *, bias, z_weight, dtype=np.float32):
    """((objective, the rest), gradients of x and head) in blocks and at once."""
    x_BTD, head, targets_BT, mask_BT = drawn(vocabulary, bias=bias, dtype=dtype)

    def objective(x_BTD, head, blocks):
        found = head_loss.head_loss(x_BTD, head, targets_BT, mask_BT, z_weight=z_weight, blocks=blocks, shards=shards)
        return 0.7 * found.objective, found

    graded = jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True), static_argnums=2)
    return graded(x_BTD, head, blocks), graded(x_BTD, head, 1)


# 48: 16 groups; 50: 2 groups, padding with 4 blocks; 37: one group, padding; 3 blocks of 7: more padding than a block.
# Of 15 tokens: 3 blocks without padding, 4 with one; a block each, and many that are padding alone.
@pytest.mark.parametrize("shards", [ONE, SEVERAL])
@pytest.mark.parametrize(("vocabulary", "blocks"), [(48, 3), (50, 4), (37, 5), (7, 15), (32, 999)])
def test_values_and_gradients_are_those_of_the_plain_way(vocabulary, blocks, shards):
    options = dict(bias=vocabulary > 7, z_weight=1e-2)
    (values, gradients), (expected, expected_gradients) = both(vocabulary, blocks, shards, **options)
    for one, other in zip(jax.tree.leaves(values), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-6)
    assert float(expected[1].correct) >= T
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("blocks", "shards"), [(1, ONE), (3, ONE), (3, SEVERAL)])
def test_what_is_reported_carries_no_gradient(blocks, shards):
    """In either way: nobody should train on a figure that is constant in one of them."""
    x_BTD, head, targets_BT, mask_BT = drawn(48, bias=False)

    def reported(x_BTD, head):
        return head_loss.head_loss(x_BTD, head, targets_BT, mask_BT, blocks=blocks, shards=shards).cross_entropy

    for gradient in jax.tree.leaves(jax.grad(reported, argnums=(0, 1))(x_BTD, head)):
        assert float(jnp.abs(gradient).max()) == 0.0


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_a_head_that_does_not_train_costs_two_products(dtype):
    """As under a prompt; one that trains costs three in blocks of tokens, four in blocks of the vocabulary."""
    x_BTD, head, targets_BT, mask_BT = drawn(48, bias=True, dtype=dtype)

    def objective(x_BTD, head, blocks=4, shards=ONE):
        return head_loss.head_loss(
            x_BTD, head, targets_BT, mask_BT, z_weight=1e-2, blocks=blocks, shards=shards
        ).objective

    def products(*argnums, **options):
        graded = jax.grad(lambda x_BTD, head: objective(x_BTD, head, **options), argnums=argnums)
        return str(jax.make_jaxpr(graded)(x_BTD, head)).count("dot_general")

    assert (products(0), products(0, 1), products(0, 1, shards=SEVERAL)) == (2, 3, 4)
    found, expected = (jax.jit(jax.grad(objective), static_argnums=2)(x_BTD, head, blocks) for blocks in (4, 1))
    assert found.dtype == x_BTD.dtype
    found, expected = (np.asarray(gradient, np.float32) for gradient in (found, expected))
    close = dict(rtol=2e-5, atol=2e-6) if dtype == np.float32 else dict(rtol=2e-2, atol=2e-2)
    np.testing.assert_allclose(found, expected, **close)


@pytest.mark.parametrize("shards", [ONE, SEVERAL])
def test_without_z_loss_and_in_bfloat16(shards):
    options = dict(bias=True, z_weight=0.0, dtype=jnp.bfloat16)
    (values, gradients), (expected, expected_gradients) = both(48, 3, shards, **options)
    np.testing.assert_allclose(values[0], expected[0], rtol=1e-6)  # sums are float32 either way
    assert gradients[0].dtype == jnp.bfloat16 and gradients[1].table_VD.dtype == jnp.float32
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True):
        np.testing.assert_allclose(np.asarray(one, np.float32), np.asarray(other, np.float32), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("shards", [ONE, SEVERAL])
def test_gradients_agree_with_finite_differences(shards):
    x_BTD, head, targets_BT, mask_BT = drawn(37, bias=True)

    def objective(table_VD):
        return head_loss.head_loss(
            x_BTD, Head(table_VD, head.bias_V), targets_BT, mask_BT, z_weight=0.1, blocks=4, shards=shards
        ).objective

    objective = jax.jit(objective)
    direction = np.random.default_rng(1).normal(size=head.table_VD.shape).astype(np.float32)
    slope = jnp.vdot(jax.grad(objective)(head.table_VD), direction)
    step = 3e-3
    difference = objective(head.table_VD + step * direction) - objective(head.table_VD - step * direction)
    np.testing.assert_allclose(slope, difference / (2 * step), rtol=5e-3)


@pytest.mark.parametrize("shards", [ONE, SEVERAL])
def test_the_first_of_equal_logits_is_the_guess(shards):
    x_BTD, targets_BT = jnp.zeros((1, 1, D)), np.zeros((1, 1), np.int32)
    for vocabulary in (37, 48):
        found = head_loss.head_loss(
            x_BTD, Head(jnp.ones((vocabulary, D))), targets_BT, np.ones((1, 1), bool), blocks=5, shards=shards
        )
        assert float(found.correct) == 1.0


def test_a_vocabulary_is_cut_without_padding_where_it_can_be():
    for size, groups in ((51200, 16), (32100, 4), (6000, 16)):
        layout = Layout.of(size, 10)
        assert (layout.groups, layout.padded) == (groups, size) and 10 <= layout.blocks <= 20
    layout = Layout.of(50257, 8)  # a prime
    assert layout.padded - layout.size < layout.width and layout.padded < 50257 + 16
    table_VD = jnp.arange(50 * 2.0).reshape(50, 2)
    layout = Layout.of(50, 4)
    np.testing.assert_array_equal(layout.joined(layout.cut(table_VD)), table_VD)
    cut = layout.cut(jnp.arange(50))
    np.testing.assert_array_equal(cut[:, 1], np.where(layout.entries(1) < 50, layout.entries(1), 0))


def test_blocks_are_for_logits_that_memory_would_feel():
    assert head_loss.num_blocks(8 * 128, 32100) == 8  # CodeT5-small on a laptop, 131 MB
    assert head_loss.num_blocks(8 * 64, 32100) == 1
    assert head_loss.num_blocks(32 * 2048, 51200) == 25  # 13 GB on one device
    assert head_loss.num_blocks(2, 2**25) == 2  # no more blocks than tokens
    assert head_loss.num_blocks(2 * 8 * 2048, 51200, shards=2) == 25  # 3.4 GB on each of two
    assert head_loss.num_blocks(2 * 8 * 128, 32100, shards=2) == 1
    assert head_loss.num_blocks(64 * 2048, 51200, shards=64) == 1
    for wrong in (0, -3):
        with pytest.raises(UserError, match=f"loss_blocks={wrong}"):
            head_loss.check_blocks(wrong)


def test_a_model_learns_the_same_with_and_without_blocks():
    """A T5, whose scaled head shares its table with the embedding: the table's gradient has two parts."""
    shape = dict(vocab_size=96, d_model=16, d_ff=32, num_encoder_layers=1, num_decoder_layers=1, num_heads=2)
    model = EncoderDecoder(T5Config(**shape, head_dim=8))
    rng = np.random.default_rng(0)
    tokens_BT = rng.integers(0, 96, (2, 8)).astype(np.int32)
    batch = {
        "inputs_BS": tokens_BT, "inputs_mask_BS": tokens_BT >= 0, "decoder_inputs_BT": tokens_BT,
        "targets_BT": np.roll(tokens_BT, -1, axis=1), "loss_mask_BT": tokens_BT >= 0,
        "task_B": np.zeros(2, np.int32),
    }  # fmt: skip
    params = {"model": jax.jit(model.init_params)(jax.random.key(0))}

    def graded(blocks, shards=ONE):
        learner = Learner(model=model, loss_blocks=blocks, logit_shards=shards)

        def objective(params):
            return learner.losses(params, {}, batch, batch["loss_mask_BT"], selection="train", z_weight=0.1)[0][0]

        return jax.jit(jax.value_and_grad(objective))(params)

    expected, expected_gradients = graded(1)
    for shards in (ONE, SEVERAL):
        loss, gradients = graded(3, shards)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5 * np.max(np.abs(other)))


@pytest.mark.parametrize(("blocks", "shards"), [(1, SEVERAL), (3, SEVERAL), (3, ONE)])
def test_a_mesh_that_splits_rows_and_vocabulary(blocks, shards):
    """Right whatever it is told of the devices; fast where it is told the truth."""
    x_BTD, head, targets_BT, mask_BT = drawn(48, bias=True)
    x_BTD, targets_BT, mask_BT = (np.concatenate([x, x])[:4] for x in (np.asarray(x_BTD), targets_BT, mask_BT))

    def objective(x_BTD, head):
        return head_loss.head_loss(
            x_BTD, head, targets_BT, mask_BT, z_weight=0.1, blocks=blocks, shards=shards
        ).objective

    graded = jax.jit(jax.value_and_grad(objective, argnums=(0, 1)))
    expected = graded(x_BTD, head)
    layout = partitioning.make_layout({"data": 4, "model": 2})
    by_entry = jax.sharding.NamedSharding(layout.mesh, jax.sharding.PartitionSpec("model"))
    found = graded(jax.device_put(x_BTD, partitioning.batch_sharding(layout)), jax.device_put(head, by_entry))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("mesh", "axes"),
    [
        ({"fsdp": 2, "model": 4}, None),
        ({"fsdp": 8}, {"batch": "data", "sequence": "fsdp", "length": "fsdp"}),  # long contexts
        ({"data": 2, "model": 4}, {"vocab": None, "length": "model"}),
    ],
)
def test_logits_stay_cut_by_rows_positions_and_vocabulary(mesh, axes):
    """The plain way gathers them nowhere: a device holds few of its eighths, by the compiled program."""
    layout = partitioning.make_layout(mesh, axes)
    named = lambda shape, dtype, *axes: jax.ShapeDtypeStruct(shape, dtype, sharding=layout.sharding("x", axes, shape))  # noqa: E731
    x_BTD = named((8, 128, 64), jnp.float32, "batch", "length", "features")
    table_VD = named((32000, 64), jnp.float32, "vocab", "embed")
    targets_BT, mask_BT = (named((8, 128), dtype, "batch", "length") for dtype in (jnp.int32, bool))

    def objective(x_BTD, table_VD, targets_BT, mask_BT):
        return head_loss.head_loss(x_BTD, Head(table_VD), targets_BT, mask_BT, z_weight=1e-4).objective

    lowered = jax.jit(jax.grad(objective, argnums=(0, 1))).lower(x_BTD, table_VD, targets_BT, mask_BT)
    share = 4 * 8 * 128 * 32000 / layout.logit_parts
    assert layout.logit_parts == 8 and lowered.compile().memory_analysis().temp_size_in_bytes < 5 * share


@pytest.mark.parametrize("shards", [ONE, SEVERAL])
def test_blocks_need_a_fraction_of_the_memory(shards):
    """By the compiled program: 1,024 positions of 32,000 entries are 125 MiB of float32 logits."""
    x_BTD, table_VD = jax.ShapeDtypeStruct((8, 128, 64), jnp.float32), jax.ShapeDtypeStruct((32000, 64), jnp.float32)
    targets_BT, mask_BT = (jax.ShapeDtypeStruct((8, 128), dtype) for dtype in (jnp.int32, bool))

    def temporary(blocks):
        def objective(x_BTD, table_VD, targets_BT, mask_BT):
            return head_loss.head_loss(
                x_BTD, Head(table_VD), targets_BT, mask_BT, z_weight=1e-4, blocks=blocks, shards=shards
            ).objective

        lowered = jax.jit(jax.grad(objective, argnums=(0, 1))).lower(x_BTD, table_VD, targets_BT, mask_BT)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    logits = 4 * 8 * 128 * 32000
    assert temporary(1) >= logits
    assert temporary(16) < 0.4 * logits
