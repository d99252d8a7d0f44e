"""What a method is measured against from above: individual finetuning, or all tasks at once, from a run's scores.json.

`intransigence` and `copy_normalised` (continual/scores.py) need the score a*_j that a model reaches on a task when
nothing stands in its way. It is another run's, so that run has to have scored the same examples in the same way.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codegen2_jax.continual.scores import LOWER_IS_BETTER, ORACLE
from codegen2_jax.errors import UserError

SCORES_FILE = "scores.json"
NAMES = {"individual": "individual", "joint": "multitask"}  # what a ceiling is called, by the walk of its run
# What two runs share when a score of one can be held against a score of the other.
FACTS = ("stream", "data_digest", "scorers", "eval_examples", "decoding")

Rows = dict[str, dict[str, list[float | None]]]


def name_of(record: Mapping[str, Any]) -> str | None:
    """What the ceiling that a run is of others is called; None for a run that is none."""
    return NAMES.get(str(record.get("walk")))


def difference(record: Mapping[str, Any], ceiling: Mapping[str, Any]) -> str | None:
    """The first fact in which a run and its ceiling disagree, in words; None where they can be compared."""
    for name in FACTS:
        own, other = record.get(name), ceiling.get(name)
        if own != other:
            return f"{name} is {_short(other)} there and {_short(own)} here"
    return None


def rows_of(records: Sequence[Mapping[str, Any]]) -> Rows:
    """a* by split and metric, one value per task: the mean over runs that are the same ceiling, of seeds say."""
    found: Rows = {}
    for split, matrices in records[0]["splits"].items():
        for metric in matrices:
            if metric in LOWER_IS_BETTER or metric.endswith(ORACLE):
                continue
            if all(metric in record["splits"].get(split, {}) for record in records):
                mean_J = np.mean([_final(record, split, metric) for record in records], axis=0)
                found.setdefault(split, {})[metric] = [float(v) if math.isfinite(v) else None for v in mean_J]
    return found


def read(path: str | Path, facts: Mapping[str, Any]) -> tuple[str, Rows]:
    """(name, a*) from a run directory or its scores.json; facts: FACTS of the run that is held against it.

    Raises UserError for a file that is none, a run that is unfinished or no ceiling, and one that scored otherwise.
    """
    place = Path(path)
    file = place / SCORES_FILE if place.is_dir() else place
    hint = "give the directory of a finished run of individual.gin or multitask.gin, or its scores.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        name, complete = name_of(record), record.get("complete")
    except OSError as error:
        raise UserError(f"CEILING={str(path)!r}: {file} cannot be read ({error.strerror}); {hint}.") from error
    except (ValueError, AttributeError) as error:
        raise UserError(f"CEILING={str(path)!r}: {file} is no scores.json; {hint}.") from error
    if name is None:
        raise UserError(f"CEILING={str(path)!r} is a run of walk={record.get('walk')!r}, which is no ceiling; {hint}.")
    if not complete:
        raise UserError(f"CEILING={str(path)!r} is unfinished; start its training command again, which continues it.")
    differs = difference(facts, record)
    if differs is not None:
        raise UserError(f"CEILING={str(path)!r} cannot be compared: {differs}; {hint} on the same stream and settings.")
    return name, rows_of([record])


def _final(record: Mapping[str, Any], split: str, metric: str) -> np.ndarray:
    """The last row of R, of an individual run the diagonal; float64 (J,), NaN where there is no score."""
    score_SJ = np.array(record["splits"][split][metric], np.float64)
    return np.diagonal(score_SJ[1:]) if record.get("walk") == "individual" else score_SJ[-1]


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
