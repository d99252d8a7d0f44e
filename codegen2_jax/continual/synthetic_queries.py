"""A study of retrieval on made-up queries: how many tasks a pool can tell apart, before their data exist.

Every task has a mean direction; a query is its task's mean and noise around it. What decides is the share of the
variance that lies between tasks: a real encoder's share can be read off `query_separation` of a finished run.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from codegen2_jax.continual import retrieval
from codegen2_jax.continual.retrieval import TaskQueries
from codegen2_jax.errors import UserError
from codegen2_jax.training.initialisation import check_seed

TEST_QUERIES = 64


def make_queries(num_tasks: int, width: int, between_share: float, seed: int) -> list[TaskQueries]:
    """Gaussian queries: means of variance `between_share` per dimension, noise of variance 1 - between_share."""
    rng = np.random.default_rng((seed, 9))
    mean_JD = math.sqrt(between_share) * rng.normal(size=(num_tasks, width))

    def around(task: int, count: int) -> np.ndarray:
        noise_ND = math.sqrt(1.0 - between_share) * rng.normal(size=(count, width))
        return (mean_JD[task] + noise_ND).astype(np.float32)

    return [
        TaskQueries(f"task_{task:02d}", around(task, retrieval.TRAIN_QUERIES), around(task, TEST_QUERIES))
        for task in range(num_tasks)
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticRetrieval:
    """A run of the study: `run()` writes retrieval.json.

    Attributes:
      num_tasks: 2 to 1,000.
      width: of queries and keys; 512 is CodeT5-small's.
      between_share: share of the variance between tasks, above 0 and below 1.
    """

    model_dir: str
    prompt: Any
    optimizer: Any
    num_tasks: int
    steps_per_task: int
    batch_size: int
    seed: int
    width: int = 512
    between_share: float = 0.05

    def __post_init__(self):
        check_seed(self.seed)
        limits = {"num_tasks": (2, 1000), "width": (2, 65536), "steps_per_task": (1, 10**6), "batch_size": (1, 10**6)}
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise UserError(f"{name}={getattr(self, name)} is out of range; it must be from {low} to {high}.")
        if not 0 < self.between_share < 1:
            raise UserError(f"between_share={self.between_share} is out of range; it must be above 0 and below 1.")

    def run(self, *, config_text: str) -> None:
        if retrieval.shows_finished(Path(self.model_dir), config_text):
            return
        header = {"method": "synthetic_retrieval", "between_share": self.between_share, "width": self.width}
        retrieval.run(
            self, config_text, header, make_queries(self.num_tasks, self.width, self.between_share, self.seed)
        )

    def dry_run(self) -> None:
        """Prints the size of the pool."""
        table_JM = self.prompt.table(self.num_tasks)
        print(f"{self.num_tasks} tasks, {table_JM.shape[1]} keys of width {self.width}, {self.prompt.top_k} selected")
