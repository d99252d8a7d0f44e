"""The manifest of a checkpoint: what each leaf is called, what it is, and the SHA-256 that it must have when read.

Digests are taken from the arrays being saved, never from files, and do not depend on how an array lies on devices.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from codegen2_jax.errors import UserError
from codegen2_jax.sharding.partitioning import host_pieces

FORMAT = 1


def named_leaves(tree: Any) -> dict[str, Any]:
    """Path joined by "/" -> leaf, in the order of `jax.tree.leaves`."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}
    assert len(named) == len(pairs), "two leaves have one name"
    return named


def is_key(leaf: Any) -> bool:
    """Whether a leaf, or its ShapeDtypeStruct, is a typed PRNG key."""
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def storable(leaf: Any) -> Any:
    """The leaf as it lies on disk: keys as their data, numbers as 0-d arrays."""
    if is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def make(step: int, named: Mapping[str, Any], meta: dict) -> dict:
    """The manifest of a state given as name -> leaf: JSON-able, with a digest of itself that covers `meta` too."""
    entries = {name: {**_description(leaf), "sha256": leaf_digest(name, leaf)} for name, leaf in named.items()}
    for name, leaf in named.items():
        if is_key(leaf):
            entries[name]["key_impl"] = str(jax.random.key_impl(leaf))
    manifest = {"format": FORMAT, "step": step, "leaves": entries, "meta": meta}
    return {**manifest, "digest": own_digest(manifest)}


def _description(leaf: Any) -> dict:
    """What a target must agree with; a PRNG key is listed as the key it is, not as its data."""
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return {"dtype": str(leaf.dtype), "shape": list(leaf.shape)}


def own_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 over everything in the manifest but its "digest"."""
    covered = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()


def leaf_digest(name: str, value: Any) -> str:
    """SHA-256, in hex, over path, dtype, shape and little-endian bytes of one global value.

    Equal for a NumPy array, a JAX array in any layout and a value read back; a typed PRNG key counts as its key data.
    """
    value = storable(value)
    digest = hashlib.sha256(f"{name}|{value.dtype.name}|{value.shape}|".encode())
    for array in host_pieces(value):  # a leaf that is spread over processes need not fit on one host
        array = np.ascontiguousarray(array)
        if array.dtype.byteorder == ">":
            array = array.astype(array.dtype.newbyteorder("<"))
        digest.update(array.reshape(-1).view(np.uint8))  # bfloat16 offers no buffer of its own
    return digest.hexdigest()


def check_target(step: int, saved: Mapping[str, dict], named: Mapping[str, Any], partial: bool) -> None:
    """Raises UserError, with the names, when the leaves wanted are not those saved (or, if partial, among them)."""
    missing = sorted(set(named) - set(saved))
    surplus = [] if partial else sorted(set(saved) - set(named))
    differing = []
    for name in sorted(set(named) & set(saved)):
        wanted, found = _description(named[name]), saved[name]
        if any(found[part] != wanted[part] for part in wanted):
            differing.append(f"{name} {found['dtype']}{found['shape']} for {wanted['dtype']}{wanted['shape']}")
    if missing or surplus or differing:
        raise UserError(
            f"checkpoint {step} belongs to another configuration: missing {missing}, unexpected {surplus}, "
            f"other dtype or shape {differing}; use the configuration it was made with or another MODEL_DIR."
        )
