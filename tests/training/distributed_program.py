"""One process of a pretraining run that several share; test_distributed.py starts it, and imports its job.

    python distributed_program.py '{"devices": 4, "meeting": ["127.0.0.1:5000", 2, 0], "jobs": [{"model_dir": ...}]}'
"""

import dataclasses
import json
import os
import signal
import sys

import numpy as np

from codegen2_jax import cli, processes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy:
    """Documents of random ids. stop_at: reading this batch, a process of the number `stopper` is told to stop."""

    stop_at: int | None = None
    stopper: int = 0
    longest = 16

    def open(self, loaded, *, batch_size, seed, rows=None):
        from codegen2_jax.data.packed_batches import PackedBatches
        from codegen2_jax.training.pretraining_streams import Streams

        rng = np.random.default_rng(0)
        documents = [{"inputs": [], "targets": rng.integers(5, 500, rng.integers(4, 30))} for _ in range(80)]
        shared = {"vocabulary": loaded.vocabulary, "sequence_length": 17, "batch_size": batch_size, "seed": seed}
        train = PackedBatches({"toy": documents}, rows=rows, **shared)
        if self.stop_at is not None:
            read = train.batch
            train.batch = lambda number: self._stop(number) or read(number)
        return Streams(train=train, valid={"toy": PackedBatches({"toy": documents[:20]}, **shared)})

    def _stop(self, number):
        import jax

        if number == self.stop_at and jax.process_index() == self.stopper:
            os.kill(os.getpid(), signal.SIGTERM)

    def examine(self, directory, loaded, say):
        pass


def make_job(*, model_dir, ordered=0, mesh=None, stop_at=None, stopper=0, steps=6, rows=8):
    from codegen2_jax.models.codegen import CodeGenConfig
    from codegen2_jax.training.initialisation import ModelSource
    from codegen2_jax.training.optimizers import AdamW
    from codegen2_jax.training.pretraining import Pretraining

    sizes = {"vocab_size": 4096, "d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 4, "head_dim": 8}
    return Pretraining(
        model_dir=str(model_dir),
        source=ModelSource(
            init_from="random", vocabulary="nano_codegen2", config=CodeGenConfig(**sizes, rotary_dim=4)
        ),
        data=Toy(stop_at=stop_at, stopper=stopper),
        optimizer=AdamW(learning_rate=1e-2, clip_norm=1.0),
        num_steps=steps,
        batch_size=rows,
        seed=0,
        ordered_reduction=ordered,
        mesh=mesh,
        evaluate_every=2,
        evaluation_batches=1,
        save_every=50,
        export_dtype="float32",
    )


def main(settings) -> int:
    import jax

    jax.config.update("jax_num_cpu_devices", settings["devices"])

    def work():
        if settings["meeting"]:
            processes.connect("on", processes.Meeting(*settings["meeting"]), timeout=120)
        for job in settings["jobs"]:
            make_job(**job).run(config_text="")

    return cli.guarded(work)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
