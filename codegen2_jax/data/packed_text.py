"""Packed batches as text to read."""

from collections.abc import Mapping, Sequence
from typing import Any

from codegen2_jax.data.loader import Batch


def describe(batch: Batch, vocabulary: Any, *, names: Sequence[str] = (), rows: int = 4) -> str:
    """The first rows of a packed batch to read: each segment's text with its control tokens spelled out.

    A token that is read both ways or carries no loss is only counted. Nothing of it can be tokenised again: text that
    spells a control token looks like one here.
    """
    spelled = {index: name for name, index in vocabulary.control_tokens.items()}
    lines = []
    for b in range(min(rows, len(batch["tokens_BT"]))):
        source, segments_T = int(batch["task_B"][b]), batch["segments_BT"][b]
        name = names[source] if source < len(names) else f"source {source}"
        document, padding = int(batch["record_B"][b]), int((segments_T == 0).sum())
        lines.append(f"--- row {b}: {name}, document {document}, padding {padding}")
        for segment in range(1, int(segments_T.max()) + 1):
            here = segments_T == segment
            loss, both = int(batch["loss_mask_BT"][b][here].sum()), int(batch["bidirectional_BT"][b][here].sum())
            lines.append(f"[{segment}] {int(here.sum())} tokens, {loss} predict, {both} bidirectional")
            tokens = batch["tokens_BT"][b][here].tolist()
            if here[-1] and batch["loss_mask_BT"][b][-1]:
                tokens.append(int(batch["targets_BT"][b][-1]))
            lines.append(_spell(tokens, vocabulary, spelled))
    return "\n".join(lines)


def _spell(tokens: Sequence[int], vocabulary: Any, spelled: Mapping[int, str]) -> str:
    """The text of the tokens, with the names of control tokens where they stand."""
    parts, waiting = [], []
    for token in [*tokens, None]:
        if token is not None and token not in spelled:
            waiting.append(token)
            continue
        parts.append(vocabulary.decode(waiting, continuation=bool(parts)))
        parts.append(spelled.get(token, ""))
        waiting = []
    return "".join(parts)
