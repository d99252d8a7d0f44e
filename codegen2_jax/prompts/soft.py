"""Soft prompts without retrieval: one block of vectors for all tasks, or one block per task.

B batch, P prompt vectors prepended, D width, V vocabulary, J tasks in the stream. The two classes of this room,
SoftPrompts and PromptPool, have the same methods, and the trainer knows no other difference than `needs_query`:

    init(key, *, num_tasks, embedding_VD, query_width) -> params, state      pure; works under jit and eval_shape
    start_task(params, state, *, task, sample, rng) -> params, state         on the host, in numpy, before a task
    prompt(params, state, task_B, query_BD, *, selection) -> prompt_BPD, aux inside the jitted step
    active_rows(state, task_B) -> {name: bool over axis 0}                   rows that this step may change
    param_axes() -> {name: logical axis names}

`params` are trained; `state` is not, but it is saved with them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from codegen2_jax.errors import UserError

Tree = dict[str, Any]
# sample(task, n, rng) -> (query_ND, mean_embedding_ND) of n training inputs of that task
Sample = Callable[[int, int, np.random.Generator], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftPrompts:
    """`num_tokens` trained vectors before every input (Lester et al. 2021, arXiv 2104.08691).

    `per_task=False` is the paper's Shared Prompts, one block; `per_task=True` its Task-Specific Prompts, the block of
    the example's task. The latter needs the true task id at evaluation by definition: `selection="pool"`, which hides
    the id from a pool, hides nothing here, and nothing is forgotten by construction.
    """

    num_tokens: int = 100
    per_task: bool

    def __post_init__(self):
        if self.num_tokens < 1:
            raise UserError(f"num_tokens={self.num_tokens} is too small; a prompt needs at least 1 vector.")

    @property
    def needs_query(self) -> bool:
        return False

    @property
    def pull_weight(self) -> float:
        return 0.0

    @property
    def sees_future_data(self) -> bool:
        return False

    def init(self, key: jax.Array, *, num_tasks: int, embedding_VD: jax.Array, query_width: int) -> tuple[Tree, Tree]:
        """prompts (1 or J, P, D) float32: rows of the input embedding, without replacement inside a block."""
        del query_width  # a soft prompt has no keys
        keys = jax.random.split(key, num_tasks if self.per_task else 1)
        blocks = [random_rows(block_key, embedding_VD, self.num_tokens) for block_key in keys]
        return {"prompts": jnp.stack(blocks)}, {"seen": jnp.zeros((num_tasks,), bool)}

    def start_task(
        self, params: Tree, state: Tree, *, task: int, sample: Sample, rng: np.random.Generator
    ) -> tuple[Tree, Tree]:
        """Marks the task as seen; no data is read."""
        del sample, rng
        seen = np.array(state["seen"])
        seen[task] = True
        return params, {**state, "seen": seen}

    def prompt(
        self, params: Tree, state: Tree, task_B: jax.Array, query_BD: jax.Array | None = None, *, selection: str
    ) -> tuple[jax.Array, Tree]:
        """prompt_BPD, and aux: pull_B zeros, selected_BK the block's number with K = 1, score_BK zeros."""
        del state, query_BD
        assert selection in ("train", "pool", "oracle"), selection
        (batch,) = task_B.shape
        block_B = task_B if self.per_task else jnp.zeros_like(task_B)
        prompt_BPD = jnp.asarray(params["prompts"])[block_B]
        zeros_BK = jnp.zeros((batch, 1), jnp.float32)
        return prompt_BPD, {"pull_B": zeros_BK[:, 0], "selected_BK": block_B[:, None], "score_BK": zeros_BK}

    def active_rows(self, state: Tree, task_B: jax.Array) -> Tree:
        """prompts: the blocks of the tasks in this batch (the only block, when shared)."""
        if not self.per_task:
            return {"prompts": jnp.ones((1,), bool)}
        return {"prompts": jnp.zeros(state["seen"].shape, bool).at[task_B].set(True)}

    def param_axes(self) -> dict[str, tuple[str, ...]]:
        return {"prompts": ("prompt", "prompt_token", "embed")}


def random_rows(key: jax.Array, embedding_VD: jax.Array, count: int) -> jax.Array:
    """`count` different rows of the input embedding, float32 (count, D). UserError when it has fewer."""
    vocab_size = embedding_VD.shape[0]
    if count > vocab_size:
        raise UserError(
            f"{count} prompt vectors cannot start from different rows of a vocabulary of {vocab_size}; "
            "use fewer or shorter prompts."
        )
    row_N = jax.random.choice(key, vocab_size, (count,), replace=False)
    return embedding_VD[row_N].astype(jnp.float32)
