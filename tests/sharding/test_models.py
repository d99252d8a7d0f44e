"""Every model under a mesh: the values of one device, in training and decoding, and less memory where it is asked."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codegen2_jax import cli
from codegen2_jax.decoding.generate import generate
from codegen2_jax.errors import UserError
from codegen2_jax.models.codegen import CodeGenConfig
from codegen2_jax.models.decoder_only import DecoderOnly
from codegen2_jax.models.language_models import EncoderDecoder
from codegen2_jax.models.llama import LlamaConfig
from codegen2_jax.models.t5 import T5Config
from codegen2_jax.sharding import hlo, partitioning

SIZES = {"vocab_size": 32, "d_model": 16, "d_ff": 32, "num_heads": 4, "head_dim": 8}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 3}
MODELS = {
    "t5": EncoderDecoder(T5Config(**SIZES, num_encoder_layers=2, num_decoder_layers=2)),
    "codegen": DecoderOnly(CodeGenConfig(**SIZES, **IDS, num_layers=2, rotary_dim=4)),
    "llama": DecoderOnly(LlamaConfig(**SIZES, **IDS, num_layers=2, num_kv_heads=2)),
}
CUBE = {"data": 2, "fsdp": 2, "model": 2}
LAYOUTS = {
    "cube": (CUBE, None),
    "sequence over model": (CUBE, {"sequence": "model"}),
    "sequence over fsdp": ({"data": 2, "fsdp": 4}, {"batch": "data", "sequence": "fsdp", "length": "fsdp"}),
}


def make_batch():
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 9, 8)
    return {
        "inputs_BS": rng.integers(4, 32, (8, 8)).astype(np.int32),
        "inputs_mask_BS": np.arange(8)[None] < lengths[:, None],
        "decoder_inputs_BT": rng.integers(4, 32, (8, 8)).astype(np.int32),
    }


def objective(model, params, batch):
    logits_BTV = model.logits(params, batch)
    return jnp.mean(jnp.square(logits_BTV)), logits_BTV


@functools.cache
def on_one_device(name):
    model = MODELS[name]
    params = jax.jit(model.init_params)(jax.random.key(0))
    (_, logits), grads = jax.jit(jax.value_and_grad(functools.partial(objective, model), has_aux=True))(
        params, make_batch()
    )
    return params, *jax.tree.map(np.asarray, (logits, grads))


@pytest.mark.parametrize(
    "name, layout",
    [("t5", "cube"), ("codegen", "cube"), ("llama", "cube"), ("codegen", "sequence over model")]
    + [("codegen", "sequence over fsdp"), ("t5", "sequence over fsdp")],
)
def test_logits_and_gradients_are_those_of_one_device(name, layout):
    params, logits, grads = on_one_device(name)
    mesh, axes = LAYOUTS[layout]
    layout = partitioning.make_layout(mesh, axes)
    model = dataclasses.replace(MODELS[name], constrain=layout.constrain)
    shardings = partitioning.shardings(layout, model.param_axes(), model.param_shapes)
    params, batch = jax.device_put(params, shardings), partitioning.put_batch(layout, make_batch())
    step = jax.jit(
        jax.value_and_grad(functools.partial(objective, model), has_aux=True), out_shardings=(None, shardings)
    )
    (_, found), found_grads = step(params, batch)
    np.testing.assert_allclose(found, logits, atol=2e-5)
    for (path, wanted), got in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(found_grads), strict=True
    ):
        np.testing.assert_allclose(got, wanted, atol=2e-5, err_msg=partitioning.leaf_name(path))


@pytest.mark.parametrize("name, beams", [("t5", 2), ("llama", 1)])
def test_predictions_are_those_of_one_device(name, beams):
    params, _, _ = on_one_device(name)
    layout = partitioning.make_layout(CUBE)
    wanted = jax.jit(functools.partial(generate, MODELS[name], max_length=6, num_beams=beams))(params, make_batch())
    model = dataclasses.replace(MODELS[name], constrain=layout.constrain)
    params = jax.device_put(params, partitioning.shardings(layout, model.param_axes(), model.param_shapes))
    found = jax.jit(functools.partial(generate, model, max_length=6, num_beams=beams))(
        params, partitioning.put_batch(layout, make_batch())
    )
    np.testing.assert_array_equal(found, wanted)


def test_the_cache_of_decoding_is_cut_by_rows_and_heads():
    layout = partitioning.make_layout(CUBE)
    model = dataclasses.replace(MODELS["llama"], constrain=layout.constrain)
    shardings = partitioning.shardings(layout, model.param_axes(), model.param_shapes)

    def start(params, batch):
        encoded, mask_BS = model.encode(params, batch["inputs_BS"], batch["inputs_mask_BS"])
        return model.start_decoding(model.decoder_params(params), encoded, mask_BS, max_length=8, num_beams=2)

    params = jax.jit(model.init_params, out_shardings=shardings)(jax.random.key(0))
    layer = jax.jit(start)(params, partitioning.put_batch(layout, make_batch()))["layers"][0]
    assert layer["k"].shape == (8, 2, 2, 8, 8)
    assert layer["k"].sharding.shard_shape(layer["k"].shape) == (2, 1, 2, 8, 8)
    assert layer["prefix_k"].sharding.shard_shape(layer["prefix_k"].shape) == (2, 1, 8, 8)


def compiled_row(length, axes, **sizes):
    """The compiled gradient of one long row of a rematerialised decoder; axes: what is cut among eight devices."""
    config = dataclasses.replace(MODELS["codegen"].config, **sizes, max_positions=length, remat="full")
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    batch = {name: tokens for name in ("tokens_BT", "positions_BT", "segments_BT")}
    layout = partitioning.make_layout({"fsdp": 8}, {"batch": None, **axes})
    model = DecoderOnly(config, constrain=layout.constrain)
    shardings = partitioning.shardings(layout, model.param_axes(), model.param_shapes)
    shapes = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), model.param_shapes, shardings
    )
    loss = lambda params, batch: objective(model, params, batch)[0]  # noqa: E731
    return jax.jit(jax.grad(loss), out_shardings=shardings).lower(shapes, batch).compile()


POSITIONS = {"sequence": "fsdp", "length": "fsdp"}


def test_cutting_the_sequence_lowers_the_memory_of_activations():
    own, whole = (compiled_row(1024, axes, num_layers=8).memory_analysis() for axes in (POSITIONS, {}))
    assert own.temp_size_in_bytes < whole.temp_size_in_bytes / 4


def test_keys_and_values_are_made_once_where_the_sequence_is_cut():
    """And gathered: the products of a device are 0.29 of those without a cut, else 0.35; an eighth at best."""
    sizes = {"d_model": 256, "d_ff": 1024, "head_dim": 64, "rotary_dim": 32, "num_layers": 2}
    own, whole = (hlo.read(compiled_row(512, axes, **sizes).as_text(), devices=8) for axes in (POSITIONS, {}))
    assert own.flops() < 0.32 * whole.flops()


def test_a_sequence_that_does_not_divide_is_the_users_error():
    layout = partitioning.make_layout({"model": 8}, {"sequence": "model"})
    message = "'sequence' of size 12 does not divide by mesh axis 'model' of size 8; .* AXES = {'sequence': None}"
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda x: layout.constrain(x, ("batch", "sequence")), jnp.zeros((2, 12)))


def test_the_fragment_for_long_contexts_fits_a_model_from_scratch():
    """Its step lowers on eight devices, with rows longer than the model's own limit."""
    files = ("pretraining/codegen2.gin", "models/tiny_codegen.gin", "scale/long_context.gin")
    values = {"MESH": {"fsdp": 8}, "SEQUENCE_LENGTH": 4097, "BATCH_SIZE": 1, "NUM_STEPS": 1, "LEARNING_RATE": 0.1}
    arguments = [f"--gin_file={name}" for name in files]
    arguments += [f"--gin.{name}={value}" for name, value in (values | {"WARMUP_STEPS": 1}).items()]
    built = cli.describe(["train", *arguments])[0].built_for(jax.devices())
    assert built.batch["tokens_BT"].shape == (1, 4096) and built.config.attention == "xla"
    built.train_step.lower(built.state, built.batch)
