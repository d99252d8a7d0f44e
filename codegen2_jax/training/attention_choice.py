"""Which attention a run computes with, and whether it computes the same as XLA's, found out before the first step."""

import dataclasses
import logging
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from codegen2_jax.errors import UserError
from codegen2_jax.models import attention_kernels
from codegen2_jax.models.attention_kernels import Visible
from codegen2_jax.sharding import partitioning

# As a part of the largest value: the rounding of bfloat16 products leaves about a hundredth, a wrong mask or scale all.
TOLERANCE = 0.03
# XLA's side of the trial holds all scores of a row at once, on one device: 1 GiB for 16 heads of so many positions.
LONGEST_TRIAL = 2048
logger = logging.getLogger(__name__)


def resolved(model: Any, layout: partitioning.Layout, *, length: int, cut: bool = True) -> Any:
    """The model with its attention chosen for the layout's devices, tried, and cut among them.

    length: positions that it is tried at; of more than `LONGEST_TRIAL` as many fewer as leave the kernel's tiles as
    they are.

    cut: False where the step is cut by hand already, and the model sees one device's rows.

    What was asked for and cannot be, or differs from XLA's, is a UserError; where that befalls what "auto" chose, it
    gives way to XLA's. On devices that are not here (ahead-of-time compilation) nothing is tried.
    """
    asked, platform = model.config.attention, layout.mesh.devices.flat[0].platform
    name, why = attention_kernels.choose(model.config, platform, layout.parts("length"))
    if name != "xla" and platform == jax.default_backend():
        fault, difference = _tried(model.config, name, length)
        if fault:
            if asked != "auto":
                raise UserError(f"{fault}; set ATTENTION='xla' and report the versions.")
            logger.warning("%s; going on with xla.", fault)
            name = "xla"
        else:
            logger.info("attention: %s (%s); differs from xla by %.1e of the largest value.", name, why, difference)
    elif asked != "xla":
        logger.info("attention: %s (%s).", name, why)
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, attention=name))
    if cut and name == "splash" and layout.mesh.size > 1:
        model = dataclasses.replace(model, split=partitioning.Split(layout))
    return model


def _tried(config: Any, name: str, length: int) -> tuple[str, float]:
    """(what is wrong with an attention on this machine, or nothing; its difference from XLA's)."""
    tile = attention_kernels.LARGEST_TILE
    if length > LONGEST_TRIAL:
        length = LONGEST_TRIAL - tile + length % tile
    try:
        difference = self_check(config, name, length)
    # What JAX and XLA raise for an older GPU, another maker's, a missing library, or too little memory.
    except (RuntimeError, NotImplementedError, ValueError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        return f"attention {name} does not run here ({reason})", math.nan
    if difference <= TOLERANCE:
        return "", difference
    return f"attention {name} differs from xla by {difference:.2e} of the largest value, limit {TOLERANCE}", difference


def self_check(config: Any, implementation: str, length: int) -> float:
    """The largest difference from XLA's attention and its three gradients, as a part of the largest value of each.

    One row of `length` positions with the model's heads: two documents and some padding, masked as the model masks.
    """
    keys, groups = jax.random.split(jax.random.key(0), 4), config.num_kv_heads
    shape = (1, length, groups, config.num_heads // groups, config.head_dim)
    dtype = jnp.dtype(config.dtype)
    q, output_gradient = (jax.random.normal(key, shape, jnp.float32).astype(dtype) for key in keys[:2])
    k, v = (jax.random.normal(key, shape[:3] + shape[4:], jnp.float32).astype(dtype) for key in keys[2:])
    q = q * jnp.asarray(config.head_dim**-0.5, dtype)
    true = max(1, length - length // 8)
    segments_BT = np.where(np.arange(length) < true, 1 + (np.arange(length) >= true // 3), 0)[None].astype(np.int32)
    visible = Visible(
        jnp.asarray(segments_BT > 0),
        segments_BT=jnp.asarray(segments_BT),
        bidirectional_BT=jnp.asarray((segments_BT > 0) & (np.arange(length) < true // 6)) if config.prefix_lm else None,
        across=config.attend_across_documents,
        ends_padded=True,
    )
    carries_loss = jnp.asarray(segments_BT > 0)[:, :, None, None, None]

    def run(name):
        def mixed(q, k, v):
            out = attention_kernels.attend(name, q, k, v, attention_kernels.prepared(name, visible))
            return jnp.where(carries_loss, out, 0)

        def all_of_it(q, k, v):
            out, pull = jax.vjp(mixed, q, k, v)
            return out, *pull(output_gradient)

        return jax.device_get(jax.jit(all_of_it)(q, k, v))

    def part(own, other):
        own, other = np.asarray(own, np.float32), np.asarray(other, np.float32)
        return float(np.max(np.abs(own - other)) / np.max(np.abs(other)))

    # np.max, since Python's would pass over a NaN.
    return float(np.max([part(own, other) for own, other in zip(run(implementation), run("xla"), strict=True)]))
