"""Positions of a row, dealt to devices so that causality leaves each of them the same number of pairs to compute.

Cut where it stands, a row gives its last device every key to look at and its first one hardly any, and all wait for the
last: with many devices twice as long as needed. So n devices deal it in 2n pieces, of which device d takes pieces d and
2n - 1 - d. Only queries travel, and what comes of them; keys and values are on every device whole.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Dealing:
    """Among `devices`, which are those of the mesh axes `names`; one device keeps everything where it is."""

    devices: int
    names: str | tuple[str, ...] | None = None

    @property
    def pieces(self) -> int:
        """What a length has to be a multiple of."""
        return 1 if self.devices == 1 else 2 * self.devices

    def order(self, length: int) -> np.ndarray:
        """int32[length]: the position that stands at each place of what was dealt."""
        pieces = np.arange(length, dtype=np.int32).reshape(self.pieces, -1)
        if self.devices == 1:
            return pieces[0]
        low = np.arange(self.devices)
        return pieces[np.stack([low, self.pieces - 1 - low], axis=1).ravel()].ravel()

    def deal(self, x: jax.Array, axis: int) -> jax.Array:
        """Inside `shard_map`: a device's consecutive positions on an axis -> those that it is dealt, rising."""
        if self.devices == 1:
            return x
        even, odd = (
            jax.lax.ppermute(piece, self.names, self._ways(first)) for first, piece in enumerate(jnp.split(x, 2, axis))
        )
        return jnp.concatenate(self._swapped(even, odd), axis)

    def collect(self, x: jax.Array, axis: int) -> jax.Array:
        """The way back."""
        if self.devices == 1:
            return x
        pieces = self._swapped(*jnp.split(x, 2, axis))
        back = [[(target, source) for source, target in self._ways(first)] for first in (0, 1)]
        return jnp.concatenate(
            [jax.lax.ppermute(piece, self.names, ways) for piece, ways in zip(pieces, back, strict=True)], axis
        )

    def _ways(self, first: int) -> list[tuple[int, int]]:
        """(from, to) of the pieces 2d + first; the even ones go to different devices, and the odd ones do."""
        return [(d, min(2 * d + first, self.pieces - 1 - 2 * d - first)) for d in range(self.devices)]

    def _swapped(self, one: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(even, odd) piece <-> (low, high) piece: of device d the low one is number d."""
        is_even = jax.lax.axis_index(self.names) % 2 == 0
        return jnp.where(is_even, one, other), jnp.where(is_even, other, one)
