"""A run directory belongs to one configuration: it is written down once and compared ever after."""

import difflib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from codegen2_jax import __version__, json_files
from codegen2_jax.errors import UserError

CONFIG_FILE = "config.gin"
LOCK_FILE = ".running"
SCORES_FILE = "scores.json"
RETRIEVAL_FILE = "retrieval.json"  # of a run that trained no language model


def _comparable(config_text: str) -> list[str]:
    """The lines that decide results; comments do not."""
    lines = [line.rstrip() for line in config_text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def config_digest(config_text: str) -> str:
    """SHA-256 over the lines that decide results."""
    return hashlib.sha256("\n".join(_comparable(config_text)).encode()).hexdigest()


def check_config(directory: Path, config_text: str) -> None:
    """Raises UserError with the difference when the directory holds a run of another configuration."""
    path = directory / CONFIG_FILE
    if not path.exists():
        return
    old, new = _comparable(path.read_text(encoding="utf-8")), _comparable(config_text)
    if old != new:
        changed = [line for line in difflib.unified_diff(old, new, lineterm="", n=0) if line[:1] in "+-"][2:]
        raise UserError(
            f"{directory} holds a run of another configuration ({'; '.join(changed)}); "
            "choose another MODEL_DIR, or delete that directory to start over."
        )


def write_config(directory: Path, config_text: str) -> None:
    """Writes the configuration, once the run is known to be able to start; for people, and for `check_config`."""
    path = directory / CONFIG_FILE
    if jax.process_index() == 0 and not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        path.write_text(config_text, encoding="utf-8")


def finished(directory: Path, digest: str) -> dict[str, Any] | None:
    """The contents of the result file when the run of this configuration is complete, else None."""
    for path in (directory / SCORES_FILE, directory / RETRIEVAL_FILE):
        if path.is_file():
            record = json.loads(path.read_text(encoding="utf-8"))
            if record.get("complete") and record.get("config_digest") == digest:
                return record
    return None


def write_scores(directory: Path, record: Mapping[str, Any]) -> None:
    """Writes scores.json, on process 0; a kill leaves the old file or the new one."""
    if jax.process_index() != 0:
        return
    json_files.write(directory / SCORES_FILE, record)


def versions() -> dict[str, str]:
    """What a number depends on besides the configuration and the data."""
    packages = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "grain", "numpy")}
    return {"codegen2_jax": __version__, "python": sys.version.split()[0], **packages}


@contextmanager
def occupied(directory: Path) -> Iterator[None]:
    """Holds the run directory for this process; two at once would overwrite each other's checkpoints.

    The lock is the kernel's and goes with the process, however that ends. Raises UserError naming the other process.
    """
    if jax.process_index() != 0:
        yield
        return
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK_FILE).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{directory} is in use by process {file.read().strip() or 'unknown'}; wait for it, or choose another "
                "MODEL_DIR."
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
