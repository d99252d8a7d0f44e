"""Checkpoints that are either right or not used: one Orbax composite per step, digests inside, fall-back on restore.

Orbax commits a step by one rename, so a killed save leaves no half step behind. It keeps no checksum of the data,
though: a flipped bit restores as a wrong value without a word. So each step carries a manifest with the SHA-256 of
every leaf and of the manifest itself, taken from the arrays being saved and compared after they are read.

The only file that imports Orbax.
"""

import contextlib
import gc
import json
import logging
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from codegen2_jax.errors import NoValidCheckpointError, StorageError, UserError
from codegen2_jax.sharding.partitioning import put_whole
from codegen2_jax.training import manifests

_STEP = re.compile(r"0|[1-9]\d*")
_TEMPORARY = re.compile(r"\d+\.orbax-checkpoint-tmp.*")
_REPLACED = re.compile(r"(\d+)\.replaced")
_SPARE_BYTES = 16 * 2**20  # for metadata, and so that the log after a save still finds room
_SETTLE_SECONDS = 0.1  # for the reads still under way when one has failed

log = logging.getLogger(__name__)


class _Damaged(Exception):
    """A step that must not be used; the message names the leaf or the file."""


class Checkpointer:
    """The checkpoints of one run, in `directory`/<step>.

    Args:
        directory: made if missing; on a local or shared file system.
        keep: newest steps kept on disk, at least 1; 2 leave one to fall back to.
        read_only: for a reader beside a running training: nothing is made, cleaned, moved or deleted.

    Opening for writing removes what a killed save left behind. All processes of a run must make the same calls.
    """

    def __init__(self, directory: str | Path, *, keep: int = 2, read_only: bool = False):
        if keep < 1:
            raise UserError(f"keep={keep} checkpoints would delete the one just written; give 1 or more.")
        if "://" in str(directory):
            raise UserError(f"checkpoint directory {directory} is no path; mount the bucket and give its folder.")
        self._directory = Path(directory).absolute()
        self._keep = keep
        self._read_only = read_only
        self._orbax = ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(
                state=ocp.PyTreeCheckpointHandler(use_ocdbt=True),  # packs small leaves into a few files
                meta=ocp.JsonCheckpointHandler(),
            )
        )
        if not read_only:
            if jax.process_index() == 0:
                self._directory.mkdir(parents=True, exist_ok=True)
                self._clean()
            _barrier("checkpoints_opened")

    def steps(self) -> list[int]:
        """The committed steps, oldest first; verified only when restored."""
        if not self._directory.is_dir():
            return []
        names = [entry.name for entry in self._directory.iterdir() if entry.is_dir() and not entry.is_symlink()]
        return sorted(int(name) for name in names if _STEP.fullmatch(name))

    def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
        """Writes one step and returns when it is committed; the same step number again replaces it.

        Args:
            step: 0 or more.
            state: tree of arrays (JAX in any sharding, NumPy, typed PRNG keys); numbers become 0-d arrays.
            meta: JSON-able; comes back as JSON gives it (tuples as lists, keys as strings).

        Raises StorageError when the disk is full or refuses; the step then does not exist and older ones still do.
        """
        assert not self._read_only, "this Checkpointer was opened read_only"
        assert step >= 0, step
        named = manifests.named_leaves(state)
        assert named, "a state without arrays"
        leaves = {name: manifests.storable(leaf) for name, leaf in named.items()}
        manifest = manifests.make(step, named, json.loads(json.dumps(meta)))
        self.check_space(sum(leaf.nbytes for leaf in leaves.values()))
        target = self._directory / str(step)
        aside = self._directory / f"{step}.replaced"
        if jax.process_index() == 0 and target.is_dir():
            target.rename(aside)  # put back by the next start if the process is killed before the new commit
        _barrier(f"checkpoint_aside_{step}")
        try:
            filled = {name: leaf for name, leaf in leaves.items() if leaf.size}  # Orbax refuses empty arrays
            state_args, meta_args = ocp.args.PyTreeSave(_nest(filled)), ocp.args.JsonSave(manifest)
            self._orbax.save(target, args=ocp.args.Composite(state=state_args, meta=meta_args))
        except (OSError, ValueError) as error:  # tensorstore reports a full disk as a ValueError
            if jax.process_index() == 0:
                self._clean()
            raise StorageError(f"checkpoint {step} in {self._directory} was not written: {_one_line(error)}") from error
        if not target.is_dir():
            raise StorageError(f"checkpoint {step} in {self._directory} was written but its commit was not seen.")
        if jax.process_index() == 0:
            self._clean()

    def restore_latest(
        self, target: Any | Callable[[int, dict], Any], *, partial: bool = False
    ) -> tuple[int, Any, dict] | None:
        """The newest step that verifies, as (step, state, meta); None for a directory without steps.

        Args:
            target: tree of `jax.ShapeDtypeStruct` or arrays. A leaf with a sharding comes back as a JAX array laid out
                so, whatever the layout at saving; any other as NumPy. Or a function (step, meta) -> such a tree, for
                states whose tree differs between stages.
            partial: the target may leave out leaves of the checkpoint (an evaluation needs no optimizer state).

        A step that does not verify is logged with the leaf, moved to `quarantine/`, and the one before is tried.
        Raises NoValidCheckpointError when steps existed and none verifies, and UserError when a valid step holds
        other leaves than the target: that is another configuration, not damage.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                manifest = self._read_manifest(step)
                wanted = target(step, manifest["meta"]) if callable(target) else target
                state = self._read_state(step, manifest, wanted, partial)
            except _Damaged as error:
                log.error("checkpoint %d is damaged: %s", step, error)
                self._quarantine(step)
            else:
                log.info("restored %d arrays from checkpoint %d", len(manifest["leaves"]), step)
                return step, state, manifest["meta"]
        if steps or self._has_quarantine():
            raise NoValidCheckpointError(
                f"no checkpoint in {self._directory} verifies (damaged now: {steps or 'none'}, the others are in its "
                "quarantine/); copy a good one back, or remove the run directory to start again."
            )
        return None

    def latest_meta(self) -> tuple[int, dict] | None:
        """(step, meta) of the newest step whose manifest verifies, without reading arrays; None if there is none."""
        for step in reversed(self.steps()):
            try:
                return step, self._read_manifest(step)["meta"]
            except _Damaged as error:
                log.error("checkpoint %d is damaged: %s", step, error)
        return None

    def close(self) -> None:
        """Frees Orbax's threads; every save is already committed."""
        self._orbax.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_manifest(self, step: int) -> dict:
        manifest = self._read(step, meta=ocp.args.JsonRestore())["meta"]
        damage = ""
        if not isinstance(manifest, dict) or manifest.get("digest") != manifests.own_digest(manifest):
            damage = "the manifest does not match its own digest"
        elif manifest["step"] != step:
            damage = f"the manifest is that of step {manifest['step']}"
        _raise_together(damage)
        if manifest["format"] != manifests.FORMAT:
            raise UserError(
                f"checkpoint {step} has format {manifest['format']} and this program reads {manifests.FORMAT}; "
                "use the version that wrote it or another MODEL_DIR."
            )
        return manifest

    def _read_state(self, step: int, manifest: dict, target: Any, partial: bool) -> Any:
        named = manifests.named_leaves(target)
        manifests.check_target(step, manifest["leaves"], named, partial)
        stored = {name: form for name, leaf in named.items() if (form := _stored_form(leaf)).size}
        restore_args = {name: _restore_args(leaf) for name, leaf in stored.items()}
        args = ocp.args.PyTreeRestore(item=_nest(stored), restore_args=_nest(restore_args), partial_restore=partial)
        restored = manifests.named_leaves(self._read(step, state=args)["state"]) if stored else {}
        leaves, wrong = [], []
        for name, leaf in named.items():
            entry = manifest["leaves"][name]
            value = restored.get(name) if name in stored else _empty(leaf)
            if value is None or manifests.leaf_digest(name, value) != entry["sha256"]:
                wrong.append(name)
            elif "key_impl" in entry:
                value = jax.random.wrap_key_data(value, impl=entry["key_impl"])
            leaves.append(value)
        _raise_together(f"leaf {wrong[0]} does not match its digest" if wrong else "")
        return jax.tree.unflatten(jax.tree.structure(target), leaves)

    def _read(self, step: int, **items: Any) -> Any:
        result, damage = None, ""
        with _without_leftovers():
            try:
                result = self._orbax.restore(self._directory / str(step), args=ocp.args.Composite(**items))
            except (MemoryError, PermissionError):
                raise  # says nothing about the checkpoint, which must not be set aside for it
            except Exception as error:  # damaged bytes can surface as any error of JSON, Orbax, tensorstore or NumPy
                if "RESOURCE_EXHAUSTED" in str(error):
                    raise
                damage = f"{'/'.join(items)} cannot be read: {_one_line(error)}"
            if damage:
                time.sleep(_SETTLE_SECONDS)
                gc.collect()
        _raise_together(damage)
        return result

    def _quarantine(self, step: int) -> None:
        if not self._read_only and jax.process_index() == 0:
            folder = self._directory / "quarantine"
            folder.mkdir(exist_ok=True)
            name, tries = str(step), 0
            while (folder / name).exists():
                tries += 1
                name = f"{step}.{tries}"
            (self._directory / str(step)).rename(folder / name)
        _barrier(f"checkpoint_quarantine_{step}")

    def _has_quarantine(self) -> bool:
        folder = self._directory / "quarantine"
        return folder.is_dir() and any(folder.iterdir())

    def _clean(self) -> None:
        """Removes temporary and surplus steps: real directories directly in the run folder, never through a link."""
        for entry in list(self._directory.iterdir()):
            if entry.is_symlink() or not entry.is_dir():
                continue
            replaced = _REPLACED.fullmatch(entry.name)
            if replaced and not (self._directory / replaced[1]).exists():
                entry.rename(self._directory / replaced[1])
            elif replaced or _TEMPORARY.fullmatch(entry.name):
                shutil.rmtree(entry)
        for step in self.steps()[: -self._keep]:
            # renamed first: a half deleted step must not be found as a step
            doomed = (self._directory / str(step)).rename(self._directory / f"{step}.orbax-checkpoint-tmp-surplus")
            shutil.rmtree(doomed)

    def check_space(self, state_bytes: int) -> None:
        """Raises StorageError when a state of this many bytes has no room; `save` asks by itself."""
        free = shutil.disk_usage(self._directory).free
        if free < state_bytes + _SPARE_BYTES:
            raise StorageError(
                f"checkpoint needs {state_bytes + _SPARE_BYTES:,} bytes, {self._directory} has {free:,} free; make "
                "room or set MODEL_DIR to another disk."
            )


@contextlib.contextmanager
def _without_leftovers() -> Iterator[None]:
    """When one read fails, Orbax drops the others and closes their event loop; Python would complain about each."""
    logger, hook = logging.getLogger("asyncio"), sys.unraisablehook
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        logger.setLevel(level)
        sys.unraisablehook = hook


def _nest(named: Mapping[str, Any]) -> dict:
    """Nested dictionaries along "/": what lies on disk does not depend on the optimizer's tuples and empty states."""
    tree: dict = {}
    for name, leaf in named.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def _stored_form(leaf: Any) -> Any:
    """The target of a leaf as it lies on disk: keys as their data, numbers as 0-d arrays."""
    if manifests.is_key(leaf):
        data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=getattr(leaf, "sharding", None))
    return leaf if hasattr(leaf, "shape") else np.asarray(leaf)


def _restore_args(leaf: Any) -> ocp.RestoreArgs:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=sharding)


def _empty(leaf: Any) -> Any:
    value, sharding = np.zeros(leaf.shape, leaf.dtype), getattr(leaf, "sharding", None)
    return value if sharding is None else put_whole(sharding, value)


def _raise_together(damage: str) -> None:
    """Raises _Damaged on every process when any of them has found damage, so that all turn to the same step."""
    if jax.process_count() > 1 and np.any(multihost_utils.process_allgather(np.asarray(bool(damage)))):
        damage = damage or "another process found damage"
    if damage:
        raise _Damaged(damage)


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
