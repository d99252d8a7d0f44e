"""Options of XLA for the training step: they reach the compiler, and a wrong one is one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codegen2_jax import cli
from codegen2_jax.errors import UserError
from codegen2_jax.sharding import partitioning
from codegen2_jax.sharding.compilation import jit_step

LAYOUT = partitioning.make_layout({"fsdp": 8}, None)
OPTION = "xla_backend_optimization_level"


def jitted(options):
    """A step over a vector that eight devices share."""
    return jit_step(lambda state, batch: (state + batch, state.sum()), LAYOUT, lies(), options)


def lies():
    return jax.sharding.NamedSharding(LAYOUT.mesh, jax.sharding.PartitionSpec("fsdp"))


def test_the_state_stays_where_it_lies_and_is_donated():
    state = jax.device_put(jnp.arange(8.0), lies())
    after, total = jitted({OPTION: 1})(state, 1.0)
    assert state.is_deleted() and after.sharding.is_equivalent_to(lies(), 1)
    assert total.is_fully_replicated and float(total) == 28
    np.testing.assert_array_equal(after, np.arange(8.0) + 1)


def test_options_reach_the_compiler():
    """The program is another one: a level at which nothing is fused, and one at which much is."""
    state = jax.ShapeDtypeStruct((8,), jnp.float32, sharding=lies())

    def text(level):
        step = lambda state, batch: (jnp.tanh(jnp.sin(state) * 2 + batch) * 3, state.sum())  # noqa: E731
        return jit_step(step, LAYOUT, lies(), level).lower(state, 1.0).compile().as_text()

    assert text({"xla_cpu_enable_fast_math": True, OPTION: 3}) != text({OPTION: 0})


@pytest.mark.parametrize(
    "options, said",
    [
        ({"xla_no_such_option": 1}, "xla_no_such_option"),
        ({OPTION: "fast"}, "'fast'"),
        ({OPTION: 1, "xla_tpu_scoped_vmem_limit_kib": 65536}, "xla_tpu_scoped_vmem_limit_kib"),
        ({OPTION: [1]}, "[1]"),
        ({1: 1}, "{1: 1}"),
        ([OPTION], OPTION),
    ],
)
def test_a_wrong_option_is_named(options, said):
    with pytest.raises(UserError) as caught:
        jitted(options)
    message = str(caught.value)
    assert said in message and "COMPILER_OPTIONS" in message and "\n" not in message


@pytest.mark.parametrize("gin_file", ["pp_tf.gin", "pretraining/nano_t5.gin"])
def test_gin_files_hand_them_to_the_step(gin_file):
    arguments = ["train", f"--gin_file={gin_file}", "--gin.COMPILER_OPTIONS={'xla_no_such_option': 1}"]
    job, _ = cli.describe(arguments)
    with pytest.raises(UserError, match="xla_no_such_option"):
        job.built_for(jax.devices())
