"""Result files: JSON that every reader takes. It has no word for NaN and infinities, so they are null."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def finite(value: Any) -> Any:
    """The value with None for every number that is not finite, in whatever mappings and sequences it is nested."""
    if isinstance(value, Mapping):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def dumps(value: Any, **options: Any) -> str:
    """`json.dumps` of the finite value; options: its own."""
    return json.dumps(finite(value), allow_nan=False, **options)


def write(path: Path, content: Any, *, ensure_ascii: bool = True) -> None:
    """Writes a result file; a kill leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(dumps(content, indent=1, ensure_ascii=ensure_ascii) + "\n", encoding="utf-8")
    temporary.replace(path)
