"""Ways to compute the self-attention of a decoder: XLA's own products, or a fused kernel that never holds T x T scores.

  xla     everywhere; the masks of every model
  cudnn   cuDNN's flash attention through jax.nn.dot_product_attention: NVIDIA GPUs, bfloat16
  splash  JAX's Pallas kernel for TPUs: causal, prefix of a fixed length, packed documents apart; positions may be cut
  auto    the kernel of the backend where it can do what the model asks, else xla (`choose`)

Shapes: B batch, T length, S keys, N query heads, G key heads, R = N / G, H head width.
"""

import functools
from collections.abc import Callable
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, Protocol, get_args

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from codegen2_jax.errors import UserError
from codegen2_jax.models.attention import MASKED
from codegen2_jax.models.dealt_positions import Dealing
from codegen2_jax.models.layers import MIXED, SCORES, accumulated, recomputed, softmax

Implementation = Literal["xla", "cudnn", "splash", "auto"]
IMPLEMENTATIONS = get_args(Implementation)
KERNEL_OF = {"gpu": "cudnn", "tpu": "splash"}  # backend -> its own kernel
LANES = 128  # splash works on tiles of so many positions and channels
LARGEST_TILE = 512
# Set by tests: Pallas' interpreter computes the splash kernel on any backend.
INTERPRET = False


@flax.struct.dataclass
class Visible:
    """What position i may attend to.

    allow(i, j) = valid_j and (j <= i or (j in a prefix and same_ij)) and (across or same_ij), same_ij: one segment.
    A row that may attend to nothing stays finite; its output is meaningless and must carry no loss.

    valid_BT: bool, any padding. segments_BT: int32, 0 is padding; None: a row is one segment. bidirectional_BT: bool,
    true in a prefix; None: none is. prefix: true in the first so many places of every row, the same thing where it is
    known beforehand. across: whether a document sees the ones packed before it. ends_padded: padding stands at the end
    of a row only, where causality hides it.
    """

    valid_BT: jax.Array
    segments_BT: jax.Array | None = None
    bidirectional_BT: jax.Array | None = None
    prefix: int = flax.struct.field(pytree_node=False, default=0)
    across: bool = flax.struct.field(pytree_node=False, default=True)
    ends_padded: bool = flax.struct.field(pytree_node=False, default=False)

    @property
    def is_causal(self) -> bool:
        """Whether a position sees nothing behind it."""
        return self.bidirectional_BT is None and not self.prefix

    @property
    def is_only_causal(self) -> bool:
        """Whether a position that carries loss sees exactly the ones up to it."""
        return self.is_causal and self.across and self.ends_padded

    def allowed(self) -> jax.Array:
        """bool[B or 1, T, T]."""
        length = self.valid_BT.shape[1]
        allowed = jnp.tri(length, dtype=bool)[None]
        if self.prefix:
            allowed = allowed | (jnp.arange(length) < self.prefix)[None, None]
        if self.bidirectional_BT is not None or not self.across:
            same_BTT = self.segments_BT[:, :, None] == self.segments_BT[:, None, :]
            if self.bidirectional_BT is not None:
                allowed = allowed | (same_BTT & self.bidirectional_BT[:, None, :])
            if not self.across:
                allowed = allowed & same_BTT
        return allowed & self.valid_BT[:, None, :]

    def bias(self) -> jax.Array:
        """float32[B, 1, T, T]: 0 or a large negative number, to be added to logits."""
        return jnp.where(self.allowed(), 0.0, MASKED).astype(jnp.float32)[:, None]


def prepared(implementation: str, visible: Visible):
    """What `attend` reads of it, made once for all layers: a tree of arrays."""
    if implementation in ("xla", "auto"):
        return visible.bias()
    if implementation == "cudnn":
        return Dense(None if visible.is_only_causal else visible.allowed()[:, None], visible.is_causal)
    if visible.bidirectional_BT is not None:
        raise UserError("ATTENTION='splash' has no prefix of a length of its own in each document; use 'xla'.")
    segments_BT = None
    if not visible.is_only_causal:
        segments_BT = visible.valid_BT if visible.across else jnp.where(visible.valid_BT, visible.segments_BT, 0)
        segments_BT = segments_BT.astype(jnp.int32)
    return Tiled(segments_BT, visible.prefix)


@flax.struct.dataclass
class Dense:
    """cuDNN's mask, bool[B, 1, T, T] or None for causality alone."""

    mask_B1TT: jax.Array | None
    causal: bool = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class Tiled:
    """Splash's mask: causal but for a prefix of fixed length, and between equal segments only (None: all are)."""

    segments_BT: jax.Array | None
    prefix: int = flax.struct.field(pytree_node=False)


def attend(implementation: str, q_BTGRH, k_BTGH, v_BTGH, mask, *, keeps_scores: bool = True) -> jax.Array:
    """mixed_BTGRH of queries that are divided by sqrt(H) already; mask: from `prepared`.

    keeps_scores: False: what XLA's way makes of T x T is made again in the backward pass; the other ways never keep it.
    """
    if implementation in ("xla", "auto"):
        mix = _xla if keeps_scores else recomputed(_xla)
        return mix(q_BTGRH, k_BTGH, v_BTGH, mask)
    if implementation == "splash":
        return _splash(q_BTGRH, k_BTGH, v_BTGH, mask)
    B, T, G, R, H = q_BTGRH.shape
    return _cudnn(q_BTGRH.reshape(B, T, G * R, H), k_BTGH, v_BTGH, mask).reshape(q_BTGRH.shape)


def _xla(q_BTGRH, k_BTGH, v_BTGH, mask) -> jax.Array:
    logits_BGRTT = checkpoint_name(accumulated("btgrh,bsgh->bgrts", q_BTGRH, k_BTGH), SCORES)
    probs_BGRTT = softmax(logits_BGRTT + mask[:, :, None], q_BTGRH.dtype)
    return jnp.einsum("bgrts,bsgh->btgrh", probs_BGRTT, v_BTGH)


def _cudnn(q_BTNH, k_BTGH, v_BTGH, mask: Dense):
    """cuDNN's flash attention, whose backward pass takes an even number of positions only: one behind all may join."""
    length = q_BTNH.shape[1]
    room = length % 2
    q, k, v = (jnp.pad(x, ((0, 0), (0, room), (0, 0), (0, 0))) for x in (q_BTNH, k_BTGH, v_BTGH))
    mask_B1TT = mask.mask_B1TT
    if mask_B1TT is not None:
        mask_B1TT = jnp.pad(mask_B1TT, ((0, 0), (0, 0), (0, room), (0, room)))
    mixed_BTNH = jax.nn.dot_product_attention(
        q, k, v, mask=mask_B1TT, scale=1.0, is_causal=mask.causal, implementation="cudnn"
    )
    return mixed_BTNH[:, :length]


# ------------------------------------------------------------------------------------------------------------- splash


def _splash(q_BTGRH, k_BTGH, v_BTGH, mask: Tiled):
    """Splash attention of a batch, each device on its own rows, heads and queries, which see all keys of their rows."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    split, (length, G, R, width) = _split.get(), q_BTGRH.shape[1:]
    dealing, head_parts = Dealing(1), 1
    if split is not None:
        dealing = Dealing(split.parts("length"), split.sharding("length").spec[0])
        head_parts = split.parts("kv_heads") * split.parts("group")
    room, channels = -length % (LANES * dealing.devices), -width % LANES
    pad = lambda x: jnp.pad(x, ((0, 0), (0, room), *((0, 0),) * (x.ndim - 3), (0, channels)))  # noqa: E731
    arguments = [pad(q_BTGRH).transpose(0, 2, 3, 1, 4), *(pad(x).swapaxes(1, 2) for x in (k_BTGH, v_BTGH))]
    axes = [("batch", "kv_heads", "group", "length", None), *[("batch", "kv_heads", None, None)] * 2]
    if mask.segments_BT is not None:
        # Positions added here are behind all others: a prefix might look at them.
        segments_BT = jnp.pad(mask.segments_BT, ((0, 0), (0, room)), constant_values=-1)
        arguments += [segments_BT, segments_BT]
        axes += [("batch", "length"), ("batch", None)]
    elif room and mask.prefix:
        raise AssertionError("a prefix comes with segments")

    padded = length + room
    one_head, order = splash.CausalMask((padded, padded)), dealing.order(padded)
    one_head.q_sequence = order
    if mask.prefix:
        one_head = splash.NumpyMask((np.tri(padded, dtype=bool) | (np.arange(padded) < mask.prefix)[None])[order])
    piece = padded // dealing.pieces  # half a tile where a device has an odd number of the smallest
    tile = next((size for size in (LARGEST_TILE, LARGEST_TILE // 2) if piece % size == 0), LANES)
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([one_head] * (G * R // head_parts)),
        block_sizes=splash.BlockSizes(**dict.fromkeys((*names, "block_q_dq", "block_kv_dq"), tile)),
        head_shards=1,
        q_seq_shards=dealing.devices,
        residual_checkpoint_name=MIXED,
        interpret=INTERPRET,
    )
    local = functools.partial(_splash_on_one_device, dealing)
    if split is not None:  # XLA cannot cut a Pallas kernel by itself
        specs = [kernel.manual_sharding_spec(split.sharding(None, "length"))]
        specs += [split.sharding(*one).spec for one in axes]
        local = split(local, tuple(specs), specs[1])
    mixed_BTGRH = local(kernel, *arguments).transpose(0, 3, 1, 2, 4)
    return mixed_BTGRH[:, :length, ..., :width]


def _splash_on_one_device(dealing: Dealing, kernel, q_BGRTH, k_BGSH, v_BGSH, segments_BT=None, segments_BS=None):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    B, G, R, T, H = q_BGRTH.shape
    q_BNTH = dealing.deal(q_BGRTH.reshape(B, G * R, T, H), axis=2)
    if segments_BT is None:
        mixed_BNTH = jax.vmap(kernel)(q_BNTH, k_BGSH, v_BGSH)
    else:
        segments = splash.SegmentIds(q=dealing.deal(segments_BT, axis=1), kv=segments_BS)
        mixed_BNTH = jax.vmap(kernel)(q_BNTH, k_BGSH, v_BGSH, segments)
    return dealing.collect(mixed_BNTH, axis=2).reshape(q_BGRTH.shape)


class Split(Protocol):
    """Runs a function on each device's own part of its arguments (`sharding.partitioning.Split`)."""

    def parts(self, logical_axis: str) -> int:
        """Parts into which a dimension of this meaning is cut."""

    def sharding(self, *logical_axes: str | None) -> jax.sharding.NamedSharding:
        """Of an array; None: every device holds that dimension whole."""

    def __call__(self, function: Callable, in_specs: tuple, out_spec: Any) -> Callable:
        """The function on parts, for arguments and a result that are cut so."""


_split: ContextVar[Split | None] = ContextVar("split", default=None)


@contextmanager
def split_by(split: Split | None):
    """While entered, splash is cut so among devices; None: there is one."""
    token = _split.set(split)
    try:
        yield
    finally:
        _split.reset(token)


# ------------------------------------------------------------------------------------------------------------- choice


def refusal(implementation: str, platform: str, *, config, length_parts: int = 1) -> str | None:
    """Why a decoder of this configuration cannot be computed so on a platform ("cpu", "gpu", "tpu"), or None.

    length_parts: devices among which the positions inside a block are cut.
    """
    if implementation == "xla":
        return None
    if KERNEL_OF.get(platform) != implementation:
        needs = {"cudnn": "an NVIDIA GPU", "splash": "a TPU"}[implementation]
        return f"needs {needs}, and this is a {platform.upper()}"
    if not hasattr(config, "num_kv_heads"):
        return "has no relative position bias, which a T5 needs"
    if implementation == "cudnn" and config.dtype != "bfloat16":
        return f"computes in bfloat16, and the model in {config.dtype}"
    if implementation == "cudnn" and (config.head_dim % 8 or config.head_dim > 256):
        return f"has heads of multiples of 8 up to 256, and the model's are {config.head_dim} wide"
    if implementation == "splash" and config.prefix_lm:
        return "has no prefix of a length of its own in each document (prefix_lm)"
    if implementation == "cudnn" and length_parts > 1:  # each of them would compute all queries
        return f"computes whole rows, and AXES cuts their positions ('length') among {length_parts} devices"
    return None


def choose(config, platform: str, length_parts: int = 1) -> tuple[str, str]:
    """(implementation, why) for the configuration's `attention`; UserError where what it names cannot be."""
    asked = config.attention
    if asked != "auto":
        reason = refusal(asked, platform, config=config, length_parts=length_parts)
        if reason is not None:
            raise UserError(f"ATTENTION={asked!r} {reason}; use 'auto' or 'xla'.")
        return asked, "asked for"
    kernel = KERNEL_OF.get(platform)
    if kernel is None:
        return "xla", f"there is no other on a {platform.upper()}"
    reason = refusal(kernel, platform, config=config, length_parts=length_parts)
    return (kernel, f"the kernel of a {platform.upper()}") if reason is None else ("xla", f"{kernel} {reason}")
