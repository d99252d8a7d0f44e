"""Finetuning with a head: a linear layer over a model's last state, trained with all weights on labelled texts.

How the CodeGen2 paper put a classifier on a decoder is not known; this is the usual way: the text and the end token,
and on the state at that token a linear layer to the classes. The other way, a label word that the model writes, is a
task of a continual stream (gin_configs/streams/understanding.gin).
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from codegen2_jax import processes
from codegen2_jax.continual.classifier import Runtime, token_ids
from codegen2_jax.data import understanding
from codegen2_jax.data.plan import evenly_spaced
from codegen2_jax.data.understanding import Question
from codegen2_jax.errors import UserError
from codegen2_jax.evaluation.execution import interval
from codegen2_jax.evaluation.records import write_json
from codegen2_jax.evaluation.suite import COLUMNS, RESULTS_FILE, rows_of, versions
from codegen2_jax.evaluation.understanding import write_lines
from codegen2_jax.metrics import classification
from codegen2_jax.training import profiling, run_directory
from codegen2_jax.training.checkpoints import Checkpointer
from codegen2_jax.training.initialisation import ModelSource, check_seed
from codegen2_jax.training.loop import Clock, raise_if_stopped, run_steps
from codegen2_jax.training.signals import StopSignal
from codegen2_jax.training.tracking import Tracker


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification:
    """A finetuning run with a head: `run()` trains, keeps the best state on valid, and scores it on test.

    Attributes:
      benchmark: boolq, defect or poj104_pairs, whose questions have the same answers.
      directory: of the publishers' files; None: the benchmark's environment variable is not set either.
      max_tokens: of a text with its end token; the rest is cut off and counted.
      num_epochs: at most; it ends when valid accuracy did not grow for more than `patience` epochs.
      limit: at most so many examples of each split, evenly spaced; None for all.
    """

    model_dir: str
    source: ModelSource
    benchmark: str
    directory: str | None
    optimizer: Any
    num_epochs: int
    batch_size: int
    seed: int
    max_tokens: int = 512
    patience: int = 2
    eval_batch_size: int = 32
    accumulation_steps: int = 1
    limit: int | None = None
    mesh: dict[str, int] | None = None
    axes: dict[str, Any] | None = None
    compiler_options: dict[str, Any] | None = None

    def __post_init__(self):
        for name in ("num_epochs", "batch_size", "eval_batch_size", "accumulation_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} is out of range; it must be at least 1.")
        check_seed(self.seed)
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit={self.limit} leaves no example; give 1 or more, or None for all.")
        if self.max_tokens < 2 or self.patience < 0:
            raise UserError(f"max_tokens={self.max_tokens}, patience={self.patience}: give 2 or more, and 0 or more.")
        if self.batch_size % self.accumulation_steps:
            raise UserError(
                f"batch_size={self.batch_size} is no multiple of accumulation_steps={self.accumulation_steps}."
            )

    # --------------------------------------------------------------------------------------------------- running

    def run(self, *, config_text: str, profile_steps: tuple[int, int] | None = None) -> None:
        """Trains from wherever the run directory stands, and writes evaluation.json; profile_steps: to trace."""
        place, digest = Path(self.model_dir), run_directory.config_digest(config_text)
        run_directory.check_config(place, config_text)
        path = place / RESULTS_FILE
        with run_directory.occupied(place), Tracker(place, process_index=jax.process_index()) as tracker:
            if path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("config_digest") == digest:
                tracker.message(f"{place} is finished; its results are in {path}.{profiling.none_left(profile_steps)}")
                return
            whole = {split: self._questions(split) for split in ("train", "valid", "test")}
            splits = {
                split: [found[place] for place in evenly_spaced(len(found), self.limit)]
                for split, found in whole.items()
            }
            loaded = self.source.load()
            runtime = Runtime(self, loaded, splits)
            run_directory.write_config(place, config_text)
            with Checkpointer(place / "checkpoints") as checkpoints, StopSignal() as stop:
                best, meta = self._train(runtime, checkpoints, tracker, stop, profile_steps)
            found = runtime.predict(best, "test")
            record = self._record(runtime, splits["test"], found, meta, len(whole["test"])) | {"config_digest": digest}
            if not processes.is_first():
                return
            write_lines(place / "predictions.jsonl", [
                {"task_id": one.id, "answer": one.choices[label].strip(), "expected": one.choices[one.label].strip()}
                for one, label in zip(splits["test"], found, strict=True)
            ])  # fmt: skip
            write_json(path, record)
            tracker.table(f"{self.benchmark}, head", COLUMNS, rows_of(record, list(record["benchmarks"])))

    def _questions(self, split: str) -> list[Question]:
        found = list(understanding.questions(self.benchmark, self.directory, split))
        if len({one.choices for one in found}) > 1:
            raise UserError(f"{self.benchmark} has other answers for every question; a head needs the same ones.")
        return found

    def _train(
        self,
        runtime: Runtime,
        checkpoints: Checkpointer,
        tracker: Tracker,
        stop: StopSignal,
        profile_steps: tuple[int, int] | None,
    ):
        """(parameters of the best epoch, meta)."""
        state, best, step, meta = runtime.restore(checkpoints)
        tracker.resume(step)
        tracker.message(f"{runtime.steps_per_epoch} steps an epoch" + (f"; restored step {step}" if step else ""))
        clock, last = Clock(), self.num_epochs * runtime.steps_per_epoch
        ends = {"begins": step, "ends": last, "traces": jax.process_index() == 0}
        profile = profiling.Profile(profile_steps, self.model_dir, message=tracker.message, **ends)
        with profile, tracker.progress("finetuning", last, first=step) as progress:
            while step < last and meta["since_best"] <= self.patience:
                epoch = step // runtime.steps_per_epoch
                state, step = run_steps(
                    runtime.train_step,
                    state,
                    runtime.batches(epoch, step % runtime.steps_per_epoch),
                    first=step,
                    last=(epoch + 1) * runtime.steps_per_epoch,
                    layout=runtime.layout,
                    tracker=tracker,
                    progress=progress,
                    clock=clock,
                    stop=stop,
                    profile=profile,
                )
                if step % runtime.steps_per_epoch == 0:
                    labels = runtime.predict(state.trainable, "valid")
                    accuracy = classification.accuracy(labels, runtime.labels["valid"])
                    meta["valid"].append(accuracy)
                    tracker.metrics(step, {"accuracy": accuracy}, split="valid")
                    tracker.message(f"epoch {epoch + 1}: valid accuracy {accuracy:.2f}")
                    meta["since_best"] += 1
                    if accuracy > max(meta["valid"][:-1], default=-1.0):
                        # A copy: the next step is given the state's own buffers.
                        best, meta["since_best"] = jax.tree.map(jnp.copy, state.trainable), 0
                checkpoints.save(step, runtime.saved(state, best), meta)
                raise_if_stopped(stop, self.model_dir)
        return best, meta

    def _record(
        self, runtime: Runtime, test: Sequence[Question], found: Sequence[int], meta: dict, of: int
    ) -> dict[str, Any]:
        """The contents of evaluation.json, as the evaluate command writes them. of: the questions there are."""
        names = [text.strip() for text in test[0].choices]
        summary = classification.summary([names[label] for label in found], [names[one.label] for one in test])
        right = [float(label == one.label) for label, one in zip(found, test, strict=True)]
        metrics = {
            "accuracy": interval(right),
            "majority": {"value": summary["majority"]},
            "macro_f1": {"value": summary["macro_f1"]},
        }
        answer = next(iter(summary["predicted"]))
        result = {
            "kind": "choices",
            "method": "head",
            "problems": len(test),
            "of": of,
            "metrics": metrics,
            "predicted": summary["predicted"],
            "references": summary["references"],
            "valid_accuracy": meta["valid"],
            "cut_texts": runtime.cut,
            "seed": self.seed,
            "versions": versions(),
            "warnings": [f"the model answers {answer!r} to everything"] if summary["constant"] else [],
        }
        loaded = runtime.loaded
        record = {"model": self.source.init_from, "model_digest": loaded.digest}
        record["parameters"] = loaded.model.parameters()
        return record | {"benchmarks": {f"{self.benchmark}_head": result}}

    def dry_run(self) -> None:
        """Builds the model and prints its size; reads no data."""
        model = self.source.without_weights().model
        print(f"{self.benchmark}: {model.parameters():,} parameters and a head, batches of {self.batch_size}")

    def show_batch(self) -> None:
        """Prints the first two training texts as the model would read them."""
        loaded = self.source.load()
        for one in self._questions("train")[:2]:
            ids = token_ids(loaded, one.text, self.max_tokens)
            print(f"--- {one.id}, {len(ids)} tokens, {one.choices[one.label].strip()}")
            print(loaded.vocabulary.decode(list(ids)))
