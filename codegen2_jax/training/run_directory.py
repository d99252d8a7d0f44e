"""A run directory belongs to one configuration: it is written down once and compared ever after."""

import difflib
import hashlib
from pathlib import Path

import jax

from codegen2_jax.errors import UserError

CONFIG_FILE = "config.gin"


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
