"""What benchmarks share: where a report goes; of contests also the options, the files both sides read, the driver."""

import argparse
import dataclasses
import functools
import pickle
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import contest
import numpy as np

BUSY = 0.5  # load average from which the machine is not idle


class Options(contest.Parser):
    """The options of a benchmark; --tiny and --out are the same in all.

    out: where the report goes by default; may name other options in braces. With --tiny it goes nowhere by default,
    since it would take the place of what was measured: `arguments.out` is then None.
    """

    def __init__(self, description: str, *, out: str, tiny: str = "a tiny model, to see that everything runs"):
        super().__init__(description)
        self._out = out
        self.add_argument("--tiny", action="store_true", help=tiny)
        self.add_argument("--out", help=f"where the report goes; by default {out}, with --tiny nowhere")

    def parse_args(self, *given: Any) -> argparse.Namespace:
        arguments = super().parse_args(*given)
        if arguments.out is None and not arguments.tiny:
            arguments.out = self._out.format(**vars(arguments))
        return arguments


def write_report(out: str | None, report: dict) -> None:
    """Writes the report of a benchmark with `Options`, or says that it is not kept."""
    if out is None:
        print("--tiny: nothing is written; --out=FILE keeps the report.")
    else:
        contest.write(Path(out), report)


def parser(description: str, *, contenders: str, batch_size: int, out: str) -> argparse.ArgumentParser:
    """The options that every contest has."""
    options = Options(description, out=out)
    options.add_argument("--contenders", default=contenders)
    options.add_argument("--batch_size", type=contest.count, default=batch_size)
    options.add_argument("--rounds", type=contest.count, default=3)
    options.add_argument("--threads", type=contest.count, default=2)
    options.add_argument("--round_limit_s", type=float, default=120, help="when torch stops a round")
    options.add_argument("--contender", help=argparse.SUPPRESS)
    options.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return options


def save(work: Path, content: dict) -> None:
    (work / "work.pickle").write_bytes(pickle.dumps(content))


def load(work: Path) -> dict:
    """What `save` wrote, in this run, in this temporary directory."""
    return pickle.loads((work / "work.pickle").read_bytes())


def write_model(work: Path, config: Any, seed: int = 0) -> int:
    """Random weights of a configuration in work/model, in Hugging Face's layout; returns the number of parameters."""
    import jax

    from codegen2_jax.interop import huggingface
    from codegen2_jax.training.initialisation import model_of

    model = model_of(config)
    params = jax.device_get(jax.jit(model.init_params)(jax.random.key(seed)))
    huggingface.save(work / "model", config, params, dtype="float32")
    return model.parameters()


# ------------------------------------------------------------------------------------------------------------ two sides


def torch_model(work: Path, threads: int, name: str):
    """The weights of `write_model` in a class of transformers, in float32."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return getattr(transformers, name).from_pretrained(work / "model")


def loss_without_dropout(config: Any, params: Any, batch: Mapping[str, Any]) -> float:
    """Our mean loss over the true tokens of a batch; params: {"model": ...}, no prompt."""
    import jax

    from codegen2_jax.training import step
    from codegen2_jax.training.initialisation import model_of

    model = model_of(dataclasses.replace(config, dropout_rate=0.0))
    state = step.TrainState(step=None, trainable=params, frozen={}, opt_state=None, prompt_state={}, skipped=None)
    valid = {"valid_B": np.ones(len(batch["task_B"]), bool)}
    loss, tokens = jax.jit(step.make_loss_step(step.Learner(model=model)))(state, {**batch, **valid})
    return float(loss / tokens)


def training(learner: Any, params: Any, labels: Any, optimizer: Any, *, prompt_state: Any, dropout: bool):
    """(our compiled step, which takes its state over, and the first state) of the product's own training."""
    import jax

    from codegen2_jax.training import step

    trainable, frozen = step.split_params(params, labels)
    axes, _ = step.split_params(learner.param_axes(), labels)
    transformation = optimizer.transformation(10_000, axes, learner.row_shapes(trainable, prompt_state))
    state = step.TrainState(
        step=jax.numpy.int32(0),
        trainable=trainable,
        frozen=frozen,
        opt_state=jax.jit(transformation.init)(trainable),
        prompt_state=prompt_state,
        skipped=jax.numpy.int32(0),
    )
    train = step.make_train_step(learner, transformation, seed=0, dropout=dropout)
    return jax.jit(train, donate_argnums=0), state


def compiled_by_steps(train: Callable, state: Any, batches: Iterable[Any]) -> tuple[Any, float]:
    """(the state after a step on each batch, seconds): with one of each shape, what compiling costs."""
    import jax

    start = time.perf_counter()
    for batch in batches:
        state, _ = train(state, batch)
    jax.block_until_ready(state)
    return state, time.perf_counter() - start


# --------------------------------------------------------------------------------------------------------------- driver


def drive(
    script: str,
    arguments: argparse.Namespace,
    variants: Mapping[str, Callable[[Path], dict]],
    contenders: Mapping[str, Callable[[Path, int], tuple]],
    *,
    write: Callable[[Path], int],
    check: Callable[[str, dict], None] = lambda variant, ready: None,
    compare: Callable[[str, dict], dict] = lambda variant, results: {},
) -> None:
    """Serve as one contender, or run each variant's contest and write the report.

    variants: {name: prepare}; `prepare(work)` saves what the contenders read and returns facts, "examples" among them,
    and "tokens_each" where tokens per second mean something. write: writes the model, returns its parameters.
    check: is given the variant and {contender: what it prepared} before the clock starts, and ends the program where
    they differ. compare: facts from the variant and {contender: {"ready": ..., "rounds": [...]}}, for the report.
    """
    if arguments.contender:
        contest.serve(*contenders[arguments.contender](arguments.work, arguments.threads))
        return
    names = contest.members("contenders", arguments.contenders, contenders)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("contender", "work")}
    report: dict[str, Any] = {"machine": contest.machine(arguments.threads), "settings": settings, "variants": {}}
    if (load := report["machine"]["load_average"]) > BUSY:
        print(f"other programs are running (load {load}): torch's threads spin while they wait, so no ratio will hold.")
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        report["parameters"] = write(work)
        for variant, prepare in variants.items():
            facts = prepare(work)
            print(f"{variant}: {facts}", flush=True)
            race = {"amount": facts["examples"], "rounds": arguments.rounds, "threads": arguments.threads}
            results = contest.compete(script, names, work, **race, check=functools.partial(check, variant))
            against = "torch" if "torch" in results else names[0]
            figures = {"amount": facts["examples"], "against": against, "tokens_each": facts.get("tokens_each")}
            rows, text = contest.table(results, **figures)
            ready = {name: contest.scalars(result["ready"]) for name, result in results.items()}
            found = compare(variant, results)
            print(f"\n{variant}, {facts['examples']} examples {found}\n{text}\n", flush=True)
            report["variants"][variant] = facts | {"table": rows, "ready": ready, **found}
    write_report(arguments.out, report)
