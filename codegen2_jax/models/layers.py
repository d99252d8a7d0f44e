"""Layers every model shares: norms, feed-forward, and noise from a counter hash.

Shapes: B batch, S length, D width, F MLP width. Parameters are float32; the computation runs in the dtype given.
"""

import math
import zlib
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from codegen2_jax.errors import UserError
from codegen2_jax.models.placement import constrain

DTYPES = ("float32", "bfloat16")  # of the computation
Remat = Literal["none", "full", "dots", "dots_no_batch"]
# A policy does not see the products inside a custom_vjp; these stand behind such a one by name.
WIDENED, SCORES, MIXED = "widened", "scores", "mixed"


def _keeping(policy, *names: str):
    policies = jax.checkpoint_policies
    return policies.save_from_both_policies(policy, policies.save_only_these_names(*names))


# What a block keeps for its backward pass; the rest is computed again. "none" keeps all but the attention's own scores
# and probabilities (T x T), which cost less to make than to keep; "full" the block's input alone, "dots" every matrix
# product and what an attention kernel gives, "dots_no_batch" the products with weights but not the attention's own.
REMATS = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": _keeping(jax.checkpoint_policies.dots_saveable, WIDENED, SCORES, MIXED),
    "dots_no_batch": _keeping(jax.checkpoint_policies.dots_with_no_batch_dims_saveable, WIDENED),
}

# ------------------------------------------------------------------------------------------------------ hashed noise
# Threefry takes XLA about a second of compilation per array on CPU and seconds of a training step; this takes neither.


def check_positive(config: Any, *names: str) -> None:
    """UserError for a field of a configuration, where it has it, that is no finite number above 0."""
    for name in names:
        value = getattr(config, name, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise UserError(f"{type(config).__name__}.{name}={value!r} is no finite number above 0; give the real one.")


def _mix(bits, salt):
    """Two rounds of xor-shift and multiply: the 'lowbias32' constants of C. Wellons, "Prospecting for Hash Functions".

    The salt enters between the rounds, so two salts never give shifted copies of one sequence.
    """
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D) ^ salt
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)


def hash_bits(seed_2: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """uint32 noise of `shape`, a pure function of the seed (two uint32 words) and of each element's linear index.

    Elementwise: XLA computes it inside whatever consumes it, on any sharding, and writes nothing of its size to memory.
    """
    assert math.prod(shape) <= 2**32, f"the 32-bit counter would repeat within {shape}"
    index, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        index = index + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
        stride *= shape[axis]
    return _mix(index * jnp.uint32(0x9E3779B1) + seed_2[0], seed_2[1])  # an odd factor: still one value per element


def seeds(key: jax.Array, stream: int, shape: tuple[int, ...]) -> jax.Array:
    """Seeds for `hash_bits`, uint32[*shape, 2], all different functions of the key; a stream is one use of a key."""
    words = jax.random.key_data(key).reshape(-1)
    words_2 = jnp.stack([words[0] ^ jnp.uint32(stream), words[-1]])
    # Mixed twice: neighbouring keys differ in one bit of one word.
    return _mix(hash_bits(words_2, (*shape, 2)) + words[-1], words_2[0])


def hashed_normal(seed_2: jax.Array, shape: tuple[int, ...], std: float, *, truncated: bool = False) -> jax.Array:
    """float32 normal noise of this standard deviation; truncated: cut at two of them, which leaves 0.880 std."""
    steps = (hash_bits(seed_2, shape) >> 9).astype(jnp.float32)
    uniform = steps * 2.0**-22 + (2.0**-23 - 1.0)  # symmetric and inside (-1, 1)
    if truncated:
        uniform = uniform * math.erf(2.0**0.5)
    return jax.lax.erf_inv(uniform) * (std * 2.0**0.5)


# ---------------------------------------------------------------------------------------------------------- dropout


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _masked_scale(x, seed_2, rate):
    keep = hash_bits(seed_2, x.shape) >= jnp.uint32(round(rate * 2**32))
    # A product and not a select, whose zeros would leave a scan as a whole array.
    return x * (keep.astype(x.dtype) * jnp.asarray(1.0 / (1.0 - rate), x.dtype))


def _masked_scale_forward(x, seed_2, rate):
    return _masked_scale(x, seed_2, rate), seed_2


def _masked_scale_backward(rate, seed_2, gradient):
    # The mask is made again from its seed: storing it would cost more than the few operations.
    return _masked_scale(gradient, seed_2, rate), None


_masked_scale.defvjp(_masked_scale_forward, _masked_scale_backward)


def dropout(x: jax.Array, seed_2: jax.Array | None, rate: float) -> jax.Array:
    """Zero each element with probability `rate` and scale the rest by 1 / (1 - rate); no seed means no dropout."""
    if seed_2 is None or rate == 0.0:
        return x
    return _masked_scale(x, seed_2, rate)


def site(seeds_S2: jax.Array | None, index: int) -> jax.Array | None:
    """The seed of one dropout site of a layer, or None where there is no dropout."""
    return None if seeds_S2 is None else seeds_S2[index]


# ----------------------------------------------------------------------------------------------------------- modules


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def accumulated(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """An einsum of two factors of one dtype whose sums are float32, forward and backward.

    Left to itself the backward pass would multiply the float32 gradient with a bfloat16 factor, at float32's speed.
    """
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _accumulated_forward(equation, a, b):
    return accumulated(equation, a, b), (a, b)


def _accumulated_backward(equation, factors, gradient):
    _, pull = jax.vjp(partial(jnp.einsum, equation), *factors)
    return pull(gradient.astype(factors[0].dtype))


accumulated.defvjp(_accumulated_forward, _accumulated_backward)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def softmax(logits: jax.Array, dtype: Any) -> jax.Array:
    """Over the last axis, in float32, then of this dtype; keeps nothing but its result for the backward pass.

    Scores are the largest arrays of a layer, and JAX's own keeps two of their size.
    """
    return jax.nn.softmax(logits, axis=-1).astype(dtype)


def _softmax_forward(logits, dtype):
    probs = softmax(logits, dtype)
    return probs, probs


def _softmax_backward(dtype, probs, gradient):
    probs, gradient = probs.astype(jnp.float32), gradient.astype(jnp.float32)
    return (probs * (gradient - jnp.sum(probs * gradient, axis=-1, keepdims=True)),)


softmax.defvjp(_softmax_forward, _softmax_backward)


@jax.custom_vjp
def widen(x_BSD: jax.Array, w_DF: jax.Array) -> jax.Array:
    """x w, for F larger than D, with a backward pass that transposes x and not the wider gradient.

    The barrier keeps the gradient's activation and dropout from being computed twice, once for each product.
    """
    return jnp.einsum("bsd,df->bsf", x_BSD, w_DF)


def _widen_forward(x_BSD, w_DF):
    return widen(x_BSD, w_DF), (x_BSD, w_DF)


def _widen_backward(residuals, gradient_BSF):
    x_BSD, w_DF = residuals
    gradient_BSF = jax.lax.optimization_barrier(gradient_BSF)
    return jnp.einsum("bsf,df->bsd", gradient_BSF, w_DF), jnp.einsum("bsd,bsf->df", x_BSD, gradient_BSF)


widen.defvjp(_widen_forward, _widen_backward)


def rematerialised(layer: type[nn.Module], remat: str, *, unrolled: bool = False) -> type[nn.Module]:
    """The layer, for a scan, keeping for its backward pass what `remat`, one of REMATS, says."""
    if remat == "none":
        return layer
    # Inside a scan XLA cannot undo the recomputation, so nothing need prevent it; an unrolled one it would.
    return nn.remat(layer, prevent_cse=unrolled, policy=REMATS[remat])


class Weight(nn.LogicallyPartitioned):
    """A declared parameter: its logical axis names, and the standard deviation to draw it with (None: ones)."""

    std: float | None = flax.struct.field(default=None, pytree_node=False)
    truncated: bool = flax.struct.field(default=False, pytree_node=False)


def weight(std: float | None, axes: tuple[str, ...], *, truncated: bool = False):
    """Declare a weight: Linen learns its shape here; `initialise` draws the values, without threefry.

    std: None for ones, 0 for zeros. truncated: whether the distribution is cut at two standard deviations.
    """

    def declare(key, shape, dtype):
        return Weight(jnp.zeros(shape, dtype), names=axes, std=std, truncated=truncated)

    return declare


def initialise(key: jax.Array, boxed) -> dict:
    """Values for a tree of `Weight`, each a function of the key and of its own path."""

    def draw(path, box):
        if box.std is None:
            return jnp.ones(box.value.shape, box.value.dtype)
        if box.std == 0.0:
            return jnp.zeros(box.value.shape, box.value.dtype)
        stream = zlib.crc32(jax.tree_util.keystr(path, simple=True, separator="/").encode())
        shape, noise = box.value.shape, partial(hashed_normal, std=box.std, truncated=box.truncated)
        if math.prod(shape) > 2**32:  # more than the counter can number: each layer has a seed of its own
            return jax.vmap(lambda seed_2: noise(seed_2, shape[1:]))(seeds(key, stream, shape[:1]))
        return noise(seeds(key, stream, ()), shape)

    return jax.tree.map_with_path(draw, boxed, is_leaf=lambda leaf: isinstance(leaf, Weight))


def recomputed(function):
    """The function, inside a layer, keeping nothing but its inputs for the backward pass.

    GELU would keep four arrays of its size, attention one of T x T for every head.
    """
    return jax.checkpoint(function, prevent_cse=False)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * scale: no mean, no bias, statistics in float32 (Zhang and Sennrich 2019)."""

    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x_BSD):
        scale_D = self.param("scale", weight(None, ("norm",)), (x_BSD.shape[-1],), jnp.float32)

        def normed(x, scale_D):
            x = x.astype(jnp.float32)
            x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
            return (x * scale_D.reshape((1,) * (x.ndim - 1) + (-1,))).astype(self.dtype)

        return recomputed(normed)(x_BSD, scale_D)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, statistics in float32 (Ba et al. 2016)."""

    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x_BSD):
        scale_D = self.param("scale", weight(None, ("norm",)), (x_BSD.shape[-1],), jnp.float32)
        bias_D = self.param("bias", weight(0.0, ("norm",)), (x_BSD.shape[-1],), jnp.float32)

        def normed(x, scale_D, bias_D):
            x = x.astype(jnp.float32)
            x = x - jnp.mean(x, axis=-1, keepdims=True)
            x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
            row = (1,) * (x.ndim - 1) + (-1,)
            return (x * scale_D.reshape(row) + bias_D.reshape(row)).astype(self.dtype)

        return recomputed(normed)(x_BSD, scale_D, bias_D)


ACTIVATIONS = {
    "relu": nn.relu,
    "gelu": recomputed(partial(nn.gelu, approximate=True)),
    "silu": recomputed(nn.silu),
}


class FeedForward(nn.Module):
    """wo(f(wi x)), or wo(f(wi x) * (wi_linear x)) when gated (Shazeer 2020), with biases of wi and wo when biased.

    activation: one of ACTIVATIONS; "gelu" is the tanh form. in_std, out_std: to draw wi and wo with, default the
    inverse root of their input's width.
    """

    mlp_dim: int
    activation: str
    gated: bool = False
    biased: bool = False
    dropout_rate: float = 0.0
    dtype: Any = jnp.float32
    in_std: float | None = None
    out_std: float | None = None
    truncated: bool = False

    @nn.compact
    def __call__(self, x_BSD, seed_2=None):
        width, dtype = x_BSD.shape[-1], self.dtype
        inside = weight(self.in_std or width**-0.5, ("embed", "mlp"), truncated=self.truncated)
        outside = weight(self.out_std or self.mlp_dim**-0.5, ("mlp", "embed"), truncated=self.truncated)
        wi_DF = self.param("wi", inside, (width, self.mlp_dim), jnp.float32)
        wo_FD = self.param("wo", outside, (self.mlp_dim, width), jnp.float32)
        hidden_BSF = checkpoint_name(widen(x_BSD, wi_DF.astype(dtype)), WIDENED)
        if self.biased:
            bias_F = self.param("wi_bias", weight(0.0, ("mlp",)), (self.mlp_dim,), jnp.float32)
            hidden_BSF = hidden_BSF + bias_F.astype(dtype)[None, None]
        hidden_BSF = ACTIVATIONS[self.activation](hidden_BSF)
        if self.gated:
            linear_DF = self.param("wi_linear", inside, (width, self.mlp_dim), jnp.float32)
            hidden_BSF = hidden_BSF * checkpoint_name(widen(x_BSD, linear_DF.astype(dtype)), WIDENED)
        hidden_BSF = constrain(dropout(hidden_BSF, seed_2, self.dropout_rate), "batch", "length", "mlp")
        out_BSD = jnp.einsum("bsf,fd->bsd", hidden_BSF, wo_FD.astype(dtype))
        if self.biased:
            bias_D = self.param("wo_bias", weight(0.0, ("norm",)), (width,), jnp.float32)
            out_BSD = out_BSD + bias_D.astype(dtype)[None, None]
        return out_BSD
