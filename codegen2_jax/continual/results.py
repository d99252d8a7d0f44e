"""The one result file of a run, scores.json, and what is shown of it."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from codegen2_jax.continual import ceilings, projection, scoring
from codegen2_jax.continual.deviations import deviations
from codegen2_jax.continual.pool_diagnostics import by_name, stage_diagnostics
from codegen2_jax.continual.replay import Buffer
from codegen2_jax.continual.scores import ORACLE, Scores, format_matrix, format_summary
from codegen2_jax.continual.setup import Setup
from codegen2_jax.continual.stream_tasks import SPLITS
from codegen2_jax.data.plan import record_lengths
from codegen2_jax.data.tags import TaggedSplit
from codegen2_jax.sharding.partitioning import to_host
from codegen2_jax.training.run_directory import versions
from codegen2_jax.training.step import TrainState


def facts(setup: Setup) -> dict[str, Any]:
    """What two runs have to share when their scores are compared (`ceilings.FACTS`)."""
    config = setup.config
    # Of the records without tags: whether a source carries one is a setting of the run, and has its own place.
    splits = [task.split(name) for task in setup.tasks for name in ("train", *setup.scored)]
    digests = [split.records.digest if isinstance(split, TaggedSplit) else split.digest for split in splits]
    return {
        "stream": [task.name for task in setup.tasks],
        "data_digest": hashlib.sha256("".join(digests).encode()).hexdigest(),
        "scorers": {name: [scoring.scorer_of(task, name) for task in setup.tasks] for name in scoring.columns(setup)},
        "eval_examples": config.eval_examples,
        "decoding": config.decoding.identifier(config.decoding.scoring_beams),
    }


def build(
    setup: Setup, digest: str, meta: dict, *, complete: bool, ceiling: tuple[str, ceilings.Rows] | None = None
) -> dict[str, Any]:
    """The contents of scores.json for a run that stands at `meta`; ceiling: the name and the scores of another run."""
    config, shared = setup.config, facts(setup)
    shapes = setup.state_shapes
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(part)) for part in (shapes.trainable, shapes.frozen)]
    record = Scores(
        tasks=shared["stream"],
        scorers=shared["scorers"],
        leave_out=setup.leave_out,
        header={
            "complete": complete,
            "method": config.method,
            "walk": config.walk,
            "replay": None if config.replay is None else dataclasses.asdict(config.replay),
            "seed": config.seed,
            "init_from": config.source.init_from,
            "mp_num": config.source.mp_num,
            "prompt": None if config.prompt is None else dataclasses.asdict(config.prompt),
            "weights_digest": setup.loaded.digest,
            "config_digest": digest,
            "data_digest": shared["data_digest"],
            "data": setup.data,
            "decoding": shared["decoding"],
            "eval_examples": shared["eval_examples"],
            "future_data_in_init": config.prompt is not None and config.prompt.sees_future_data,
            "tags": config.tags,
            "query_pooling": config.query_pooling,
            "task_id_in_query": config.tags == "input_and_query",
            "deviations_from_the_paper": deviations(config),
            "versions": versions(),
        },
        cost={
            "trainable_parameters": sizes[0],
            "parameters": sum(sizes),
            "prompt_tokens": config.prompt.num_tokens if config.prompt is not None else 0,
            "train_examples_seen": meta["examples_seen"],
            **_replay_cost(setup, meta),
            "wall_seconds": round(meta["wall_seconds"], 1),
        },
    )
    learned = [tuple(range(len(setup.tasks))), *setup.stages]  # row 0 speaks of all tasks
    for tasks, row in zip(learned, meta["rows"], strict=False):
        number = 0 if row is meta["rows"][0] else tasks[-1] + 1
        for split, metrics in row.items():
            for metric, values in metrics.items():
                for task, value in enumerate(values):
                    if value is not None and (config.walk != "individual" or task in tasks):
                        record.record(split, metric, stage=number, task=task, value=value)
    baselines = scoring.baselines(setup) | ({} if ceiling is None else {ceiling[0]: ceiling[1]})
    for name, splits in baselines.items():
        for split, metrics in splits.items():
            for metric, values in metrics.items():
                record.record_baseline(name, split, metric, values)
    record.diagnostics = by_name(meta["diagnostics"])
    return record.to_dict()


def _replay_cost(setup: Setup, meta: dict) -> dict[str, Any]:
    """What replay held and showed again: examples by task, the bytes of their tokens, examples replayed."""
    if setup.config.replay is None:
        return {}
    buffer = Buffer.from_json(meta["buffer"])
    kept = {setup.tasks[task].name: buffer.records_of(task) for task in buffer.tasks}
    lengths = [
        sum(int(lengths_N[buffer.records_of(task)].sum()) for lengths_N in record_lengths(setup.tasks[task].train))
        for task in buffer.tasks
    ]
    return {
        "buffer_examples": {name: len(records_N) for name, records_N in kept.items()},
        "buffer_bytes": 4 * sum(lengths),
        "replayed_examples_seen": meta["replayed_seen"],
    }


def diagnose(setup: Setup, directory: Path, state: TrainState, details: dict, last: int) -> dict[str, Any]:
    """What the pool selected for the scored examples, those of test where it is scored, once task `last` was learned.

    details: {(split, task): scoring.TaskScores}. Also writes diagnostics/stage_<n>.npz (keys, queries, selections),
    from which the next stage computes how far the keys moved. Returns what is JSON-able.
    """
    split = setup.scored[-1]
    scored = [details[split, task] for task in range(len(setup.tasks))]
    queries = [
        setup.batches.queries_of(data.split(split), part.records_N)
        for data, part in zip(setup.tasks, scored, strict=True)
    ]
    key_MD = to_host(state.trainable["prompt"]["keys"]).astype(np.float32)
    selected_BK = np.concatenate([part.selected_NK for part in scored])
    folder = directory / "diagnostics"
    before_path, before_MD = folder / f"stage_{last - 1}.npz", None
    if last and before_path.exists():
        with np.load(before_path, allow_pickle=False) as stored:
            before_MD = stored["key_MD"]
    found = stage_diagnostics(
        to_host(state.prompt_state["assignment"]),
        key_MD,
        queries,
        selected_BK,
        last=last,
        before_MD=before_MD,
        plane=projection.fit(np.concatenate(queries)),
    )
    if jax.process_index() == 0:
        folder.mkdir(exist_ok=True)
        task_B = np.repeat(np.arange(len(queries)), [len(query_ND) for query_ND in queries])
        arrays = {"key_MD": key_MD, "query_BD": np.concatenate(queries), "task_B": task_B, "selected_BK": selected_BK}
        np.savez(folder / f"stage_{last}.npz", **arrays)
    return found


def show(tracker: Any, record: dict) -> None:
    """The matrices and the summary of a complete run, on the terminal."""
    for split in SPLITS:
        for metric in record["splits"].get(split, {}):
            if metric.endswith(ORACLE):
                continue  # one row, and `oracle_gap` says what it comes to
            tracker.message("\n".join(["", *format_matrix(record, split=split, metric=metric)]))
    for split in [split for split in SPLITS if split in record["splits"]]:
        tracker.message("\n".join(["", *format_summary(record, split=split)]))
    for name, values in record["diagnostics"].items():
        if isinstance(values[-1], list) and all(isinstance(value, float) for value in values[-1]):
            tracker.message(f"{name} per task, at the end: " + " ".join(f"{value:.2f}" for value in values[-1]))
    cost = record["cost"]
    tracker.message(
        f"{cost['trainable_parameters']:,} of {cost['parameters']:,} parameters trained; "
        f"{cost['train_examples_seen']:,} examples; {cost['wall_seconds'] / 60:.1f} minutes"
    )
