"""What a pretraining run reads, whatever the model: batches to learn from and held-out batches by name."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Streams:
    """Training batches, and fixed batches of held-out records by name.

    byte_lengths: UTF-8 bytes that each id stands for, where losses are also told in bits per byte.
    texts: the held-out streams whose targets are plain text.
    """

    train: Any
    valid: dict[str, Any]
    byte_lengths: np.ndarray | None = None
    texts: tuple[str, ...] = ()

    def seen(self, step: int) -> dict[str, dict[str, float]]:
        """{source: epochs, tokens, bytes} that the batches before `step` hold; nothing where it is not counted."""
        return self.train.progress(step) if hasattr(self.train, "progress") else {}

    def bytes_of(self, name: str, batch: dict[str, np.ndarray]) -> int:
        """Bytes of the targets that carry loss; 0 for a stream that is no plain text."""
        if name not in self.texts:
            return 0
        return int(self.byte_lengths[batch["targets_BT"]][batch["loss_mask_BT"]].sum())
