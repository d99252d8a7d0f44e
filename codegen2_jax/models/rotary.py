"""Rotary position embeddings (Su et al. 2021): pairs of channels turned by an angle that grows with the position.

Two conventions for which channels form a pair, and checkpoints are right under one only: CodeGen and GPT-J turn
neighbours (2i, 2i + 1), Llama and GPT-NeoX turn (i, i + R/2). Shapes: B batch, T length, N heads, H head width,
R turned channels, C = R / 2 pairs.
"""

import jax
import jax.numpy as jnp
import numpy as np

Rotation = tuple[jax.Array, jax.Array]
"""(cos_BTC, sin_BTC), float32."""


def rotation(positions_BT: jax.Array, rotary_dim: int, theta: float = 10000.0) -> Rotation:
    """Cosines and sines of position * theta^(-2i / R), float32 whatever the compute dtype.

    Made once per pass and shared by all layers. Logits depend on differences of positions only.
    """
    frequencies_C = (1.0 / theta ** (np.arange(0, rotary_dim, 2, dtype=np.float32) / rotary_dim)).astype(np.float32)
    angles_BTC = positions_BT[..., None].astype(jnp.float32) * frequencies_C[None, None]
    return jnp.cos(angles_BTC), jnp.sin(angles_BTC)


def turn_neighbours(x_BTNH: jax.Array, turned: Rotation) -> jax.Array:
    """CodeGen's: channels 2i and 2i + 1 of the first R are a pair; channels from R on stay as they are."""
    cos_BT1C, sin_BT1C = (part[:, :, None] for part in turned)
    rotary_dim = 2 * cos_BT1C.shape[-1]
    x = x_BTNH[..., :rotary_dim].astype(jnp.float32)
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    x = jnp.stack([a * cos_BT1C - b * sin_BT1C, b * cos_BT1C + a * sin_BT1C], axis=-1).reshape(x.shape)
    return jnp.concatenate([x.astype(x_BTNH.dtype), x_BTNH[..., rotary_dim:]], axis=-1)


def turn_halves(x_BTNH: jax.Array, turned: Rotation) -> jax.Array:
    """Llama's: channels i and i + R/2 of the first R are a pair; channels from R on stay as they are."""
    cos_BT1C, sin_BT1C = (part[:, :, None] for part in turned)
    half = cos_BT1C.shape[-1]
    a, b = (x_BTNH[..., i * half : (i + 1) * half].astype(jnp.float32) for i in (0, 1))
    turned_parts = (a * cos_BT1C - b * sin_BT1C, b * cos_BT1C + a * sin_BT1C)
    return jnp.concatenate([*(part.astype(x_BTNH.dtype) for part in turned_parts), x_BTNH[..., 2 * half :]], axis=-1)
