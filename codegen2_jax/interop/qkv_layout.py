"""CodeGen's fused q, k and v: how its rows are ordered, and how to find out in how many shards.

Rows of `qkv_proj` are ordered by shard, then q, v, k (in this order), then heads inside the shard. CodeGen1 and the
larger CodeGen2 models have 4 shards, CodeGen2-1B and 3.7B have 8; reading one as the other gives wrong numbers and no
error.
"""

import logging
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from codegen2_jax.errors import UserError
from codegen2_jax.interop.layouts import OURS, Row, Source
from codegen2_jax.models.codegen import CodeGenConfig

LOG = logging.getLogger(__name__)
LIBRARY = 4  # what transformers' CodeGen is fixed to
METADATA = "mp_num"
MAX_MODELING = 10_000_000  # bytes of a modeling file
# (layers, width, heads) -> shards, of the published checkpoints whose name is the key.
PUBLISHED = {
    **{f"codegen-350M-{kind}": ((20, 1024, 16), 4) for kind in ("nl", "multi", "mono")},
    **{f"codegen-2B-{kind}": ((32, 2560, 32), 4) for kind in ("nl", "multi", "mono")},
    **{f"codegen-6B-{kind}": ((33, 4096, 16), 4) for kind in ("nl", "multi", "mono")},
    **{f"codegen-16B-{kind}": ((34, 6144, 24), 4) for kind in ("nl", "multi", "mono")},
    "codegen2-1B": ((16, 2048, 16), 8),
    "codegen2-3_7B": ((16, 4096, 16), 8),
    "codegen2-7B": ((32, 4096, 16), 4),
    "codegen2-16B": ((34, 6144, 24), 4),
}


class Evidence(NamedTuple):
    """A number of shards, and what says so."""

    mp_num: int
    text: str

    def __str__(self) -> str:
        return f"{self.text} ({self.mp_num} shards)"


def fused(name: str, config: CodeGenConfig, mp_num: int, place: tuple[str, ...], layer: int) -> Row:
    """The row of a `qkv_proj.weight`, [3 * N * H, D]; ours q, k, v, each [D, N, H]."""
    D, N, H = config.d_model, config.num_heads, config.head_dim
    shards = (mp_num, 3, N * H // mp_num, D)

    def to_ours(w):
        q, v, k = (w.reshape(shards)[:, i].reshape(N, H, D).transpose(2, 0, 1) for i in range(3))
        return q, k, v

    def to_theirs(*qkv):
        q, k, v = (w.transpose(1, 2, 0).reshape(mp_num, N * H // mp_num, D) for w in qkv)
        return np.stack([q, v, k], axis=1).reshape(3 * N * H, D)

    places = tuple((*place, name) for name in "qkv")
    shape = (3 * N * H, D)
    return Row(name=name, shape=shape, places=places, layer=layer, to_ours=to_ours, to_theirs=to_theirs)


def fits(config: CodeGenConfig, mp_num: int) -> bool:
    """Whether heads and width can be divided into this many shards."""
    return mp_num >= 1 and config.num_heads % mp_num == 0 and config.d_model % mp_num == 0


def shards_for_export(config: CodeGenConfig, mp_num: int | None) -> int:
    """The shards to write: as asked, else 4, which transformers reads; raises UserError if they do not divide."""
    if mp_num is None and not fits(config, LIBRARY):
        mp_num = math.gcd(math.gcd(config.num_heads, config.d_model), LIBRARY)
        LOG.warning(
            "num_heads=%d is no multiple of %d, so the export has %d shards; transformers' CodeGen cannot read it.",
            config.num_heads,
            LIBRARY,
            mp_num,
        )
    mp_num = LIBRARY if mp_num is None else mp_num
    _check_fit(config, mp_num, "the export")
    return mp_num


def _check_fit(config: CodeGenConfig, mp_num: int, what: str) -> None:
    if not fits(config, mp_num):
        raise UserError(
            f"mp_num={mp_num} for {what} does not divide num_heads={config.num_heads} and d_model={config.d_model}; "
            "give a common divisor of both."
        )


# ------------------------------------------------------------------------------------------------------ how many shards


def decide(config: CodeGenConfig, raw: Mapping[str, Any], source: Source) -> tuple[int, tuple[str, ...]]:
    """(number of shards, what it follows from). Raises UserError where nothing tells, or where two things disagree.

    The caller's word settles a disagreement of the others, but does not stand against all of them together: a wrong
    number would give wrong logits in silence.
    """
    found = evidence(config, raw, source)
    said = {item.mp_num for item in found}
    listed = "; ".join(map(str, found))
    if source.mp_num is not None:
        if said and said.isdisjoint({source.mp_num}):
            raise UserError(
                f"--mp_num={source.mp_num} contradicts what lies with {source.name}: {listed}; drop the flag, or "
                "correct what is wrong there."
            )
        if len(said) > 1:
            LOG.warning("%s: --mp_num=%d decides between %s.", source.name, source.mp_num, listed)
        found = [Evidence(source.mp_num, "--mp_num"), *(item for item in found if item.mp_num == source.mp_num)]
    elif len(said) > 1:
        raise UserError(f"{source.name}: the evidence for its qkv layout disagrees: {listed}; give --mp_num=4 or 8.")
    elif not said:
        raise UserError(
            f"{source.name}: nothing tells whether its qkv weights have 4 or 8 shards (looked at: metadata {METADATA}, "
            "modeling_*.py, head_dim in config.json, a published name), and its shape alone does not; "
            "give codegen2_jax.convert --mp_num=4 (CodeGen1, CodeGen2-7B, -16B) or --mp_num=8 (CodeGen2-1B, -3.7B)."
        )
    _check_fit(config, found[0].mp_num, source.name)
    return found[0].mp_num, tuple(map(str, found))


def evidence(config: CodeGenConfig, raw: Mapping[str, Any], source: Source) -> list[Evidence]:
    """All that speaks for a number of shards, the strongest first."""
    found = []
    ours = raw.get(OURS)
    for number, where in (
        (source.metadata.get(METADATA), f"metadata {METADATA} of the weights"),
        (ours.get(METADATA) if isinstance(ours, Mapping) else None, f"{OURS}.{METADATA} in config.json"),
    ):
        if number is not None:
            if not re.fullmatch(r"[1-9]\d{0,3}", str(number)):
                raise UserError(f"{source.name}: {where} is {str(number)[:40]!r}, no number of shards; correct it.")
            found.append(Evidence(int(number), where))
    for path in sorted(source.directory.glob("modeling_*.py")) if source.directory else ():
        found += [Evidence(number, f"mp_num = {number} in {path.name}") for number in _assigned(path)]
    if raw.get("head_dim") in (128, 256):  # only the models of 8 shards write it; OpenNMT/CTranslate2 goes by it
        found.append(Evidence(8, f"head_dim={raw['head_dim']} in config.json"))
    for name in _repositories(raw, source):
        shape, number = PUBLISHED.get(re.sub("^Salesforce/|_P$", "", name), (None, 0))
        if shape == (config.num_layers, config.d_model, config.num_heads):
            found.append(Evidence(number, f"name and shape of {name}"))
    return found


def _assigned(path: Path) -> list[int]:
    """The numbers that a modeling file gives mp_num outside comments; it is read as text."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(MAX_MODELING)
    except OSError:
        return []
    return sorted({int(number) for number in re.findall(r"(?m)^[ \t]*mp_num[ \t]*=[ \t]*(\d{1,4})\b", text)})


def _repositories(raw: Mapping[str, Any], source: Source) -> list[str]:
    """Names of Hub repositories that the weights may come from: of the cache's folder, and in the configuration."""
    names = [source.name]
    for part in source.directory.resolve().parts if source.directory else ():
        names += [part.removeprefix("models--").replace("--", "/", 1)] if part.startswith("models--") else []
    names += [raw["_name_or_path"]] if isinstance(raw.get("_name_or_path"), str) else []
    return [name for name in dict.fromkeys(names) if name.startswith("Salesforce/")]


# --------------------------------------------------------------------------------------------------------- verification


def relaid(params: Mapping[str, Any], config: CodeGenConfig, mp_num: int, other: int) -> dict[str, Any]:
    """The tree that the same file gives when its rows are taken to have `other` shards; the rest is shared."""
    place = ("decoder", "layers", "attention")
    attention = params["decoder"]["layers"]["attention"]
    arrays = {name: np.empty_like(np.asarray(attention[name])) for name in "qkv"}
    for layer in range(config.num_layers):
        theirs = fused("", config, mp_num, place, layer).to_theirs(*(np.asarray(attention[n][layer]) for n in "qkv"))
        for name, part in zip("qkv", fused("", config, other, place, layer).to_ours(theirs), strict=True):
            arrays[name][layer] = part
    layers = {**params["decoder"]["layers"], "attention": {**attention, **arrays}}
    return {**params, "decoder": {**params["decoder"], "layers": layers}}


class CannotTellError(UserError):
    """Neither reading of the fused weights is clearly better; `losses` of each."""

    losses: dict[int, float]


def verify_layout(
    loss: Callable[[Mapping[str, Any]], float], params: Mapping[str, Any], config: CodeGenConfig, mp_num: int
) -> dict[int, float]:
    """Mean loss of a text under 4 and 8 shards: {shards: nats per token}.

    loss: of a tree, on a fixed text. Raises CannotTellError unless the tree as it is, read with `mp_num` shards, is
    better by at least 1 nat than the other reading. Where heads do not divide there is no other, and nothing is shown.
    """
    losses = {mp_num: float(loss(params))}
    for other in sorted({4, 8} - {mp_num}):
        if fits(config, other):
            losses[other] = float(loss(relaid(params, config, mp_num, other)))
    if not all(losses[mp_num] <= value - 1.0 for other, value in losses.items() if other != mp_num):
        text = ", ".join(f"{value:.3f} with {number}" for number, value in sorted(losses.items()))
        error = CannotTellError(
            f"cannot tell the qkv layout: mp_num={mp_num} is not better than the other by 1 nat per token of a Python "
            f"sample ({text} shards); give the right --mp_num, or --no-verify_layout if the model knows no Python."
        )
        error.losses = losses
        raise error
    return losses
