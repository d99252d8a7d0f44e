"""The soft prompts of a finished continual run as adapters of peft, read from its scores.json and its checkpoint.

peft's prompt tuning has one block of vectors for all inputs. So has a task here where prompts are shared or belong to
one task each, and in a pool where a task owns just as many keys as are chosen: knowing the task, the choice is known.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from codegen2_jax.errors import UserError
from codegen2_jax.interop import huggingface, peft_adapter
from codegen2_jax.training import run_directory
from codegen2_jax.training.checkpoints import Checkpointer
from codegen2_jax.training.initialisation import weights_digest

PREFIX = "best/prompt/"


def export_prompts(
    run: str | Path,
    target: str | Path,
    *,
    task: str | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Writes the prompts that the run ended with into `target`, which `peft.PeftModel.from_pretrained` reads.

    task: of which task; None: a shared prompt into `target` itself, else each task's into a folder of its name.
    Raises UserError for runs without soft prompts, unfinished ones, those that trained the model's weights as well,
    pools that choose by the input, and weights that are no longer those that the prompts were trained for.
    """
    run, target = Path(run), Path(target)
    record = _record(run)
    tasks, shared = _exportable(run, record, task)
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not overwrite):
        raise UserError(f"{target} is not empty; give a new directory, or --overwrite.")
    config, base = _base(run, record)
    arrays = _arrays(run, record)
    for name in tasks:
        place = target if shared or task is not None else target / name
        prompt_PD = block_of(record["prompt"], arrays, record["stream"].index(name), run)
        peft_adapter.save_prompt(place, prompt_PD, config, base_model=base)
        whose = "all tasks" if shared else name
        say(f"wrote {place}: {len(prompt_PD)} vectors of {whose}, for the model {base}")


def block_of(prompt: Mapping[str, Any], arrays: Mapping[str, np.ndarray], task: int, source: Any) -> np.ndarray:
    """The vectors prompt_PD that stand before every input of a task, in their order.

    prompt: what scores.json says of the prompts; arrays: "prompts" and, of a pool, "assignment".
    """
    vectors = np.asarray(arrays["prompts"], np.float32)
    if "assignment" not in arrays:
        return vectors[task if prompt["per_task"] else 0]
    owned_N = np.flatnonzero(arrays["assignment"][task])
    if len(owned_N) != prompt["top_k"] or prompt["prompt_order"] != "key_id":
        raise UserError(
            f"{source}: of {len(owned_N)} keys {prompt['top_k']} are chosen for each input, in the order "
            f"{prompt['prompt_order']!r}; peft has one block for all inputs, so only a pool whose tasks own TOP_K keys "
            "each, in the order of their ids, can be exported."
        )
    return vectors[owned_N].reshape(-1, vectors.shape[-1])


def _record(run: Path) -> dict[str, Any]:
    path = run / run_directory.SCORES_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or "stream" not in record:
            raise ValueError("it holds no scores of a stream")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not read ({error}); --adapter takes the directory of a continual run.") from None
    if not record.get("complete"):
        raise UserError(f"{run} is unfinished; start its training command again, which continues it.")
    if "prompt" not in record:
        raise UserError(f"{path} says nothing of its prompts: an older version wrote it; train again to export.")
    if record["prompt"] is None:
        raise UserError(f"{run} has no soft prompts: its method is {record.get('method')!r}.")
    return record


def _exportable(run: Path, record: Mapping[str, Any], task: str | None) -> tuple[list[str], bool]:
    """(tasks whose prompts are written, whether it is one block for all of them)."""
    stream = record["stream"]
    if task is not None and task not in stream:
        raise UserError(f"{run} has learned no task {task!r}; its tasks are {', '.join(stream)}.")
    shared = record["prompt"].get("per_task") is False
    tasks = [task] if task is not None else stream[-1:] if shared else list(stream)
    if record.get("walk") == "individual" and tasks != stream[-1:]:
        raise UserError(f"{run} kept the prompts of its last task only; add --task {stream[-1]}.")
    return tasks, shared


def _base(run: Path, record: Mapping[str, Any]) -> tuple[Any, str]:
    """(configuration, name) of the model that the prompts stand before; a Hub name stays one."""
    name = record["init_from"]
    if name == "random":
        raise UserError(f"{run} started from random weights, which nothing holds; its prompts fit no model.")
    directory = huggingface.resolve_directory(name)
    if weights_digest(directory) != record["weights_digest"]:
        raise UserError(f"the weights in {directory} are not those that {run} was trained with; put them back.")
    config = huggingface.open_model(directory, mp_num=record.get("mp_num")).config
    is_hub_name = "snapshots" in directory.parts and not Path(name).expanduser().is_dir()
    return config, name if is_hub_name else str(directory.resolve())


def _arrays(run: Path, record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The prompts' vectors and, of a pool, which keys belong to which task, from the last checkpoint."""
    folder = run / "checkpoints"
    with Checkpointer(folder, read_only=True) as checkpoints:
        shapes = checkpoints.latest_shapes()
        trained = [name for name in shapes if name.startswith("best/") and not name.startswith(PREFIX)]
        if trained:
            raise UserError(
                f"{run} trained the model as well ({len(trained)} weights, such as {trained[0][5:]}); its prompts fit "
                "no published model."
            )
        if PREFIX + "prompts" not in shapes:
            raise UserError(f"{folder} holds no checkpoint with soft prompts; was it deleted, or made elsewhere?")
        wanted: dict[str, Any] = {"best": {"prompt": {"prompts": shapes[PREFIX + "prompts"]}}}
        if "prompt_state/assignment" in shapes:
            wanted["prompt_state"] = {"assignment": shapes["prompt_state/assignment"]}
        _, state, meta = checkpoints.restore_latest(wanted, partial=True)
    stages = 1 if record.get("walk") == "joint" else len(record["stream"])
    if meta["stage"] < stages:
        where = f"task {meta['stage'] + 1} of {stages}"
        raise UserError(f"{folder}: the newest whole checkpoint is of {where}; train again in another MODEL_DIR.")
    arrays = {"prompts": state["best"]["prompt"]["prompts"], **state.get("prompt_state", {})}
    return {name: np.asarray(jax.device_get(array)) for name, array in arrays.items()}
