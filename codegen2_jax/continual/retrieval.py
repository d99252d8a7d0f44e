"""What a prompt pool will select, without training a language model: keys and queries are all that it takes.

With a frozen query encoder a key learns from the pull of its task's queries alone (arXiv 2307.02435, equation 1), so
selection for any stream and encoder follows from one pass of the encoder and some thousand steps on vectors.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from codegen2_jax import json_files
from codegen2_jax.continual import diagnostics, pool_diagnostics
from codegen2_jax.continual.pool_diagnostics import by_name, stage_diagnostics
from codegen2_jax.errors import UserError
from codegen2_jax.training import run_directory
from codegen2_jax.training.tracking import Tracker

TRAIN_QUERIES = 512  # of each task; a mean direction needs no more
SHOWN = ("retrieval_top1", "retrieval_majority", "own_key_recall", "own_key_limit")  # by task


@dataclasses.dataclass(frozen=True)
class TaskQueries:
    """The queries of one task: train_ND for the keys, test_ND to be told apart, float32."""

    name: str
    train_ND: np.ndarray
    test_ND: np.ndarray


def study(
    prompt: Any, optimizer: Any, tasks: Sequence[TaskQueries], *, steps_per_task: int, batch_size: int, seed: int
) -> list[dict]:
    """Trains the keys of a pool along the stream and returns the diagnostics after each stage."""
    if prompt is None or not prompt.needs_query:
        raise UserError("a study of retrieval needs a prompt pool; give prompt=@pool.PromptPool().")
    width = tasks[0].train_ND.shape[1]
    embedding_VD = jnp.ones((prompt.table(len(tasks)).shape[1] * prompt.prompt_length, 1), jnp.float32)  # stands in
    params, state = prompt.init(
        jax.random.key(seed), num_tasks=len(tasks), embedding_VD=embedding_VD, query_width=width
    )

    def sample(task: int, count: int, rng: np.random.Generator):
        pool_ND = tasks[task].train_ND
        rows = rng.choice(len(pool_ND), size=count, replace=count > len(pool_ND))
        return pool_ND[rows], np.ones((count, 1), np.float32)

    learn = _make_learn(prompt, optimizer, params, state, steps_per_task)
    select = jax.jit(lambda params, state, query_BD: _select(prompt, params, state, query_BD))
    stages, before_MD = [], None
    for stage, task in enumerate(tasks):
        rng = np.random.default_rng((seed, 8, stage))
        params, state = prompt.start_task(params, state, task=stage, sample=sample, rng=rng)
        params, state = jax.tree.map(jnp.asarray, (params, state))
        rows = rng.integers(len(task.train_ND), size=(steps_per_task, batch_size))
        params = learn(params, state, jnp.asarray(task.train_ND)[rows], jnp.full(batch_size, stage, jnp.int32))
        queries = [one.test_ND for one in tasks]
        selected_BK = np.asarray(select(params, state, jnp.asarray(np.concatenate(queries))))
        key_MD = np.asarray(params["keys"])
        table_JM = np.asarray(state["assignment"])
        found = stage_diagnostics(table_JM, key_MD, queries, selected_BK, last=stage, before_MD=before_MD)
        stages.append(found)
        before_MD = key_MD
    return stages


def _select(prompt: Any, params: dict, state: dict, query_BD: jax.Array) -> jax.Array:
    nobody_B = jnp.zeros(query_BD.shape[0], jnp.int32)  # the task is not used
    return prompt.prompt(params, state, nobody_B, query_BD, selection="pool")[1]["selected_BK"]


def _make_learn(prompt: Any, optimizer: Any, params: dict, state: dict, steps: int):
    """Builds `learn(params, state, query_TBD, task_B) -> params`: one stage of steps on the keys, by their pull."""
    shape = jax.ShapeDtypeStruct((1,), jnp.int32)

    def rows_of(state, task_B):
        active_M = prompt.active_rows(state, task_B)["keys"]
        return {"prompt": {"keys": active_M[:, None]}}

    rows = jax.eval_shape(rows_of, state, shape)
    axes = {"prompt": {"keys": prompt.param_axes()["keys"]}}
    if hasattr(optimizer, "narrowed"):
        optimizer = optimizer.narrowed(["prompt/keys"], [f"prompt/{name}" for name in params])
    transformation = optimizer.transformation(steps, axes, rows)

    def loss(trained, params, state, query_BD, task_B):
        _, aux = prompt.prompt({**params, **trained["prompt"]}, state, task_B, query_BD, selection="train")
        return -prompt.pull_weight * jnp.mean(aux["pull_B"])

    @jax.jit
    def learn(params, state, query_TBD, task_B):
        trained = {"prompt": {"keys": params["keys"]}}
        active = rows_of(state, task_B)

        def step(carry, query_BD):
            trained, opt_state = carry
            grads = jax.grad(loss)(trained, params, state, query_BD, task_B)
            updates, opt_state = transformation.update(grads, opt_state, trained, rows=active)
            return (jax.tree.map(jnp.add, trained, updates), opt_state), None

        (trained, _), _ = jax.lax.scan(step, (trained, transformation.init(trained)), query_TBD)
        return {**params, "keys": trained["prompt"]["keys"]}

    return learn


def summary(found: Mapping[str, list]) -> dict[str, float]:
    """The end of a study in one number each: means over the tasks, the largest overlap of two tasks, plain figures.

    found: the diagnostics by name, one value a stage. A figure that the pool does not have is left out.
    """
    last = {name: values[-1] for name, values in found.items()}
    overlap_JJ = last["selection_overlap"]
    pairs = [row[other] for number, row in enumerate(overlap_JJ) for other in range(number)]
    by_task = ("retrieval_top1", "own_key_recall", "own_key_limit", "retrieval_majority", "usage_entropy")
    figures = {name: _mean(last.get(name) or []) for name in (*by_task, "effective_keys")}
    figures |= {name: last.get(name) for name in ("nearest_mean_accuracy", "effective_keys_overall", "key_drift")}
    figures["largest_selection_overlap"] = max((value for value in pairs if value is not None), default=None)
    return {name: value for name, value in figures.items() if value is not None}


def report(record: Mapping[str, Any]) -> list[str]:
    """Lines of text: for each task how much of its own it finds at the end, and how well means tell tasks apart."""
    tasks, last = record["stream"], {name: values[-1] for name, values in record["diagnostics"].items()}
    head = f"nearest_mean_accuracy {diagnostics.figure(last['nearest_mean_accuracy'])} over {len(tasks)} tasks"
    names = [name for name in pool_diagnostics.RETRIEVAL if last.get(name) is not None]
    means = [f"mean {name} {_mean(last[name]):.3f}" for name in names if None not in last[name]]
    return [head, *pool_diagnostics.lines(last, tasks), *(["  ".join(means)] if means else [])]


def shows_finished(directory: Path, config_text: str, check_data: Callable[[dict], None] | None = None) -> bool:
    """Whether the directory holds this study, which then is printed again; UserError where it holds another run.

    check_data: raises UserError when the data of the stored study has changed; None where a study has none.
    """
    run_directory.check_config(directory, config_text)
    record = run_directory.finished(directory, run_directory.config_digest(config_text))
    if record is None:
        return False
    if check_data is not None:
        check_data(record)
    with Tracker(directory, process_index=jax.process_index()) as tracker:
        tracker.message(f"{directory} is finished; its results are in {directory / run_directory.RETRIEVAL_FILE}.")
        tracker.message("\n".join(["", *report(record)]))
    return True


def run(job: Any, config_text: str, header: dict, tasks: Sequence[TaskQueries]) -> None:
    """Runs the study, prints it and writes retrieval.json into the run directory.

    job: has model_dir, prompt, optimizer, steps_per_task, batch_size and seed. header: facts to store with the result.
    """
    directory, began = Path(job.model_dir), time.time()
    with run_directory.occupied(directory), Tracker(directory, process_index=jax.process_index()) as tracker:
        run_directory.write_config(directory, config_text)
        stages = study(
            job.prompt,
            job.optimizer,
            tasks,
            steps_per_task=job.steps_per_task,
            batch_size=job.batch_size,
            seed=job.seed,
        )
        found = by_name(stages)
        record = {
            "stream": [task.name for task in tasks],
            "complete": True,
            "seed": job.seed,
            **header,
            "prompt": dataclasses.asdict(job.prompt),
            "config_digest": run_directory.config_digest(config_text),
            "versions": run_directory.versions(),
            "summary": {"test": summary(found)},
            "diagnostics": found,
            "cost": {"wall_seconds": round(time.time() - began, 1)},
        }
        path = directory / run_directory.RETRIEVAL_FILE
        if jax.process_index() == 0:
            json_files.write(path, record)
        tracker.message("\n".join(["", *report(record)]))
        tracker.message(f"wrote {path}; no language model was trained; {record['cost']['wall_seconds']} s")


def _mean(values: Sequence[float | None]) -> float | None:
    """Over the tasks that have a value; None without any."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
