"""One run along a stream of tasks: train a stage, score every task, extend R, save, go on."""

import math
import time
from typing import Any

import jax

from codegen2_jax.continual import ceilings, data_record, pool_diagnostics, results, scoring
from codegen2_jax.continual.replay import Buffer
from codegen2_jax.continual.scores import ORACLE
from codegen2_jax.continual.setup import Setup
from codegen2_jax.evaluation.runner import mean_loss
from codegen2_jax.training import profiling, run_directory
from codegen2_jax.training.loop import LOG_EVERY, Clock, raise_if_stopped, run_steps
from codegen2_jax.training.profiling import Profile
from codegen2_jax.training.step import TrainState


class Run:
    """One walk along the stream. What decides the next step is in `state` and `meta`; the checkpoint holds both."""

    def __init__(self, config, directory, digest, config_text, tracker, checkpoints, stop):
        self.config, self.directory, self.digest = config, directory, digest
        self.tracker, self.checkpoints, self.stop = tracker, checkpoints, stop
        self.setup = Setup(config, directory, tell=tracker.message)
        self.ceiling = None if config.ceiling is None else ceilings.read(config.ceiling, results.facts(self.setup))
        run_directory.write_config(directory, config_text)
        self.num_tasks, self.num_stages = len(self.setup.tasks), len(self.setup.stages)
        self.clock = Clock()
        self.began = time.time()

    # Checkpoints are numbered along the whole run: stage, then step; a stage's last number is its start of the next.
    def _number(self, stage: int, step: int) -> int:
        return stage * (self.setup.steps_per_stage + 1) + step

    def learn(self, profile_steps: tuple[int, int] | None = None) -> None:
        total = self.setup.steps_per_stage
        profiling.check(profile_steps, ends=self.num_stages * total)  # before the scores that precede the first step
        state, best, meta = self._restore()
        begins = meta["stage"] * total + (total if meta["trained"] else int(state.step))
        ends = {"begins": begins, "ends": self.num_stages * total, "traces": jax.process_index() == 0}
        config = self.config
        with Profile(profile_steps, self.directory, message=self.tracker.message, **ends) as self.profile:
            while meta["stage"] < self.num_stages:
                if not meta["trained"]:
                    state, best = self._train(state, best, meta)
                # The rest of the stage is a function of the checkpoint that `_train` left behind.
                state = state.replace(trainable=best)
                self._score(state, meta)
                if config.replay is not None and not config.replay.with_current:
                    self._admit(meta)
                meta |= {"stage": meta["stage"] + 1, "trained": False, **_start_of_stage(meta["examples_seen"])}
                if meta["stage"] < self.num_stages:
                    if config.walk == "individual":
                        state = self.setup.new_state()
                    state = self._open(state, meta)
                best = _copy(state.trainable)
                self._save(state, best, meta, step=0)
                self._write(meta, complete=False)
                raise_if_stopped(self.stop, config.model_dir)
        results.show(self.tracker, self._write(meta, complete=True))

    # ---------------------------------------------------------------------------------------------------- stages

    def _open(self, state: TrainState, meta: dict) -> TrainState:
        for task in self.setup.stages[meta["stage"]]:
            state = self.setup.start_task(state, task)
        if self.setup.needs_query:
            seen = [task for stage in self.setup.stages[: meta["stage"] + 1] for task in stage]
            self.tracker.message("\n".join(self.setup.batches.query_separation(seen)))
        if self.config.replay is not None and self.config.replay.with_current:
            self._admit(meta)
        return self.setup.fresh_optimizer(state)

    def _admit(self, meta: dict) -> None:
        """Lets the stage's task enter the replay buffer."""
        (task,) = self.setup.stages[meta["stage"]]
        buffer = self.config.replay.admit(
            Buffer.from_json(meta["buffer"]),
            task,
            len(self.setup.tasks[task].train),
            num_tasks=self.num_tasks,
            seed=self.config.seed,
        )
        meta["buffer"] = buffer.to_json()

    def _train(self, state: TrainState, best: Any, meta: dict) -> tuple[TrainState, Any]:
        """Trains the stage to its end, keeping the best state by its validation score."""
        config, setup, stage = self.config, self.setup, meta["stage"]
        buffer = Buffer.from_json(meta["buffer"])
        batches = setup.batches.training(stage, buffer)
        iterator = batches.iterator()
        if meta["data"] is not None:
            iterator.set_state(meta["data"])
        replayed = batches.batch_size - config.batch_size  # rows of every batch
        total = setup.steps_per_stage
        every = max(1, math.ceil(total / config.evaluations_per_task))
        intervals = [every, config.save_every]
        between_epochs = config.replay is not None and config.replay.schedule == "epoch_end"
        if between_epochs:
            intervals.append(batches.batches_per_epoch)
        step, name = int(state.step), self._name(stage)
        with self.tracker.progress(f"task {stage + 1}/{self.num_stages} {name}", total, first=step) as progress:
            while step < total and not meta["stalled"]:
                first = step
                state, step = run_steps(
                    setup.train_step,
                    state,
                    iterator,
                    first=first,
                    last=min(*((step // interval + 1) * interval for interval in intervals), total),
                    layout=setup.layout,
                    tracker=self.tracker,
                    progress=progress,
                    clock=self.clock,
                    stop=self.stop,
                    labels={"task": name},
                    metric_offset=stage * total,
                    profile=self.profile,
                )
                meta["examples_seen"] = meta["examples_before"] + step * config.batch_size
                meta["replayed_seen"] += (step - first) * replayed
                if between_epochs and (step % batches.batches_per_epoch == 0 or step == total):
                    state = self._replay(state, meta, buffer, epoch=-(-step // batches.batches_per_epoch))
                if step % every == 0 or step == total:
                    if self._validate(state, meta, step):
                        best = _copy(state.trainable)
                    if meta["stalled"] and between_epochs and step % batches.batches_per_epoch and step < total:
                        # The epoch that early stopping cuts short counts as one; its pass may make the best state yet.
                        state = self._replay(state, meta, buffer, epoch=-(-step // batches.batches_per_epoch))
                        if self._validate(state, meta, step):
                            best = _copy(state.trainable)
                        meta["stalled"] = True
                meta["data"] = iterator.get_state()
                meta["trained"] = step == total or meta["stalled"]
                self._save(state, best, meta, step=step)
                raise_if_stopped(self.stop, config.model_dir)
        return state, best

    def _name(self, stage: int) -> str:
        return "+".join(self.setup.tasks[task].name for task in self.setup.stages[stage])

    def _replay(self, state: TrainState, meta: dict, buffer: Buffer, *, epoch: int) -> TrainState:
        """One pass over the buffer; it moves neither the step number nor the learning rate's schedule."""
        rows = self.config.replay.rows_per_step(self.config.batch_size)
        count = sum(-(-len(buffer.records_of(task)) // rows) for task in buffer.tasks)
        losses: list[jax.Array] = []
        with self.tracker.progress(f"replay of {len(buffer.pairs)} examples", count) as progress:
            for number, batch in enumerate(self.setup.batches.replayed(meta["stage"], epoch, buffer), start=1):
                state, metrics = self.setup.replay_step(state, self.setup.put(batch))
                losses = [*losses[-1:], metrics["loss"]]
                if number % LOG_EVERY == 0 or number == count:
                    # The one before's: the device has this step to go on with.
                    progress.update(number, loss=float(jax.device_get(losses[0])))
        meta["replayed_seen"] += count * rows
        return state

    def _validate(self, state: TrainState, meta: dict, step: int) -> bool:
        """Scores the stage's tasks on their valid splits, updates the stall counters; whether this is the best so far.

        Of a joint stage the means over its tasks count.
        """
        stage, setup = meta["stage"], self.setup
        beams = self.config.decoding.selection_beams
        losses, found, values = [], [], []
        for task in setup.stages[stage]:
            batches = setup.batches.evaluation(task, "valid")
            losses.append(mean_loss(setup.loss_step, state, batches, put=setup.put_whole))
            found.append(scoring.score_task(setup, state, task, "valid", beams=beams, selection="pool").scores)
            values.append(scoring.selection_score(setup.tasks[task].scorers, found[-1]))
        loss, value = sum(losses) / len(losses), sum(values) / len(values)
        better_score = meta["best_score"] is None or value > meta["best_score"]
        better_loss = meta["best_loss"] is None or loss < meta["best_loss"]
        meta["score_stalls"] = 0 if better_score else meta["score_stalls"] + 1
        meta["loss_stalls"] = 0 if better_loss else meta["loss_stalls"] + 1
        if better_score:
            meta["best_score"], meta["best_step"] = value, step
        if better_loss:
            meta["best_loss"] = loss
        meta["stalled"] = min(meta["score_stalls"], meta["loss_stalls"]) > self.config.patience
        named = [name for name in found[0] if all(scores.get(name) is not None for scores in found)]
        means = {name: sum(scores[name] for scores in found) / len(found) for name in named}
        shown = {"valid_loss": loss, **{f"valid_{name}": score for name, score in means.items()}}
        self.tracker.metrics(stage * setup.steps_per_stage + step, shown, task=self._name(stage))
        text = ", ".join(f"{name} {value:.2f}" for name, value in shown.items())
        self.tracker.message(f"  step {step}: {text}{' (best)' if better_score else ''}")
        return better_score

    def _score(self, state: TrainState | None, meta: dict) -> None:
        """Appends a row to R; the row before training (stage None) is decoded without a prompt."""
        before = not meta["rows"]
        name = "before training" if before else f"after {self._name(meta['stage'])}"
        cells = len(self.setup.scored) * self.num_tasks
        with self.tracker.progress(f"scoring {name}", cells) as progress:
            selection = None if before or self.config.prompt is None else "pool"
            row, details = scoring.score_row(self.setup, state, selection=selection, progress=progress)
        meta["rows"].append(row)
        if not before and meta["stage"] == self.num_stages - 1 and self._retrieves():
            # What wrong retrieval costs: the same prompts, found by the true task id (oracle_gap).
            with self.tracker.progress("scoring with the true task id", cells) as progress:
                oracle, _ = scoring.score_row(self.setup, state, selection="oracle", progress=progress)
            for split, columns in oracle.items():
                row[split] = row[split] | {f"{column}{ORACLE}": values for column, values in columns.items()}
        if not before and self.setup.needs_query:
            last = self.setup.stages[meta["stage"]][-1]
            found = results.diagnose(self.setup, self.directory, state, details, last)
            meta["diagnostics"].append(found)
            names = [task.name for task in self.setup.tasks]
            self.tracker.message("\n".join([f"what the pool selects, {name}:", *pool_diagnostics.lines(found, names)]))
        for split, columns in row.items():
            text = "; ".join(
                f"{column} " + " ".join("-" if v is None else f"{v:.{2 if column == 'loss' else 1}f}" for v in values)
                for column, values in columns.items()
            )
            self.tracker.message(f"  {name}, {split}: {text}")

    def _retrieves(self) -> bool:
        """Whether prompts are found by their keys, and could be found wrong: not where every task owns every key."""
        prompt = self.config.prompt
        return self.setup.needs_query and not prompt.table(self.num_tasks).all()

    # ------------------------------------------------------------------------------------------------ checkpoints

    def _restore(self) -> tuple[TrainState, Any, dict]:
        setup = self.setup
        shapes = setup.state_shapes
        restored = self.checkpoints.restore_latest(_saved(shapes, shapes.trainable))
        if restored is None:
            self.tracker.resume(-1)
            self._announce("starting")
            meta = {"stage": 0, "trained": False, "rows": [], "diagnostics": [], "wall_seconds": 0.0}
            meta |= {"tasks": setup.data}
            meta |= {"examples_seen": 0, "replayed_seen": 0, "buffer": Buffer().to_json(), **_start_of_stage(0)}
            state = setup.new_state()
            self._score(state, meta)
            state = self._open(state, meta)
            best = _copy(state.trainable)
            self._save(state, best, meta, step=0)
            return state, best, meta
        number, saved, meta = restored
        data_record.check_restored(meta.get("tasks"), setup.data, self.config.model_dir)
        self.began -= meta["wall_seconds"]
        frozen = setup.new_state().frozen
        state = TrainState(frozen=frozen, **{name: value for name, value in saved.items() if name != "best"})
        last_metric = meta["stage"] * setup.steps_per_stage + (number - self._number(meta["stage"], 0))
        self.tracker.resume(last_metric)
        self._announce(f"continuing at task {meta['stage'] + 1}, step {int(state.step)}")
        return state, saved["best"], meta

    def _announce(self, what: str) -> None:
        setup = self.setup
        trained = sum(leaf.size for leaf in jax.tree.leaves(setup.state_shapes.trainable))
        total = trained + sum(leaf.size for leaf in jax.tree.leaves(setup.state_shapes.frozen))
        self.tracker.message(
            f"{what}: {self.config.method} on {' -> '.join(task.name for task in setup.tasks)}; "
            f"{trained:,} of {total:,} parameters train; {self.config.source.init_from} weights; "
            f"{jax.device_count()} {jax.devices()[0].platform} device(s); batch shapes {setup.shapes}"
        )

    def _save(self, state: TrainState, best: Any, meta: dict, *, step: int) -> None:
        meta["wall_seconds"] = time.time() - self.began
        self.checkpoints.save(self._number(meta["stage"], step), _saved(state, best), meta)

    def _write(self, meta: dict, *, complete: bool) -> dict:
        """Writes scores.json and returns what is in it."""
        record = results.build(self.setup, self.digest, meta, complete=complete, ceiling=self.ceiling)
        run_directory.write_scores(self.directory, record)
        return record


def _start_of_stage(examples_seen: int) -> dict:
    """What meta holds of a stage that has not begun."""
    return {
        "examples_before": examples_seen,
        "data": None,
        "best_score": None,
        "best_loss": None,
        "best_step": 0,
        "score_stalls": 0,
        "loss_stalls": 0,
        "stalled": False,
    }


def _saved(state: TrainState, best: Any) -> dict:
    """The part of a state that a checkpoint holds: frozen weights come from where they came from."""
    parts = {"step": state.step, "trainable": state.trainable, "opt_state": state.opt_state}
    return {**parts, "prompt_state": state.prompt_state, "skipped": state.skipped, "best": best}


def _copy(tree: Any) -> Any:
    """A copy that survives the donation of the original to the next step."""
    return jax.tree.map(lambda leaf: leaf.copy(), tree)
