"""A pool of prompts found by keys: Prompt Pooling (PP), and PP with teacher forcing (PP-TF).

B batch, M keys (one prompt each), L vectors per prompt, K prompts chosen, P = K * L vectors prepended, D width, J
tasks, Dq query width. The mechanism is L2P's (Wang et al. 2022, arXiv 2112.08654) with its task mask; PP-TF on code is
arXiv 2307.02435. An example's query, from a frozen encoder, is compared with every key; the prompts of the K most
similar candidate keys are prepended to its input. Training adds -pull_weight * mean_B(pull_B) to the loss, minus
because pull_B is a similarity that has to grow (the paper prints a plus; its code subtracts).

Which keys are candidates is the whole difference between the methods:

    selection   candidates                                   used
    "train"     the keys that the example's task owns        training (PP owns all keys: assignment "learned")
    "pool"      ready keys of the tasks seen so far          evaluation; the task id is not read
    "oracle"    as "train"                                   evaluation with the true task id, reported beside "pool"

Before any task has been started no key is a candidate of "pool", and "oracle" on a task not yet started finds keys that
were never set. Both stay well defined (lowest ids first, scores 0, vectors of zeros under data initialisation), but
they are no prompts: score the untrained model without one.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from codegen2_jax.errors import UserError
from codegen2_jax.prompts.assignment import ASSIGNMENTS, assignment_table
from codegen2_jax.prompts.clusters import kmeans
from codegen2_jax.prompts.sharing import SHARING, first_owner_only, similar_keys, without_sharing
from codegen2_jax.prompts.soft import Sample, Tree, random_rows

QUERIES_PER_TASK = 512  # from which a task's mean or its clusters are estimated
_CHOICES = {
    "assignment": tuple(ASSIGNMENTS),
    "initialisation": ("strict", "paper", "random_unit", "uniform"),
    "sharing": SHARING,
    "selectable": ("seen", "all"),
    "prompt_order": ("key_id", "score"),
    "prompt_scale": ("unit", "embedding"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptPool:
    """Settings of a pool, and its pure functions; the interface is described in `prompts/soft.py`.

    top_k: prompts chosen per example (K). prompt_length: vectors per prompt (L). assignment, pool_size, shared_per_pair
    and seed: see `assignment_table`. sharing: what becomes of keys with two owners, see prompts/sharing.py.
    pull_weight: weight of the pull of chosen keys towards the query.

    initialisation: "strict" sets a task's new keys from that task's own training inputs when it starts; "paper" sets
    all keys from the inputs of all tasks before the first one, as published, which looks into the future
    (`sees_future_data`); "random_unit" uses random keys and random rows of the input embedding, "uniform" L2P's
    U[0, 0.01) for both, all ready at once. Under assignment "kmeans" a task's keys start at k-means centres of its
    training queries, whatever sets the prompts.

    selectable: "seen" offers an evaluation the ready keys of tasks already started, "all" every ready key (all but
    "strict" make them ready before the first task; under "strict" the two agree).

    prompt_order: the chosen prompts stand by ascending key id, or by descending score as in the released code. The
    model's positions are relative, so the order matters.

    prompt_scale: prompts made from data have norm 1 ("unit", as published), or the mean norm of the token embedding's
    rows ("embedding"); T5's rows have norm near sqrt(D), so published prompts start much shorter than tokens.
    """

    top_k: int = 20
    prompt_length: int = 5
    assignment: str = "disjoint"
    pool_size: int | None = None
    shared_per_pair: int = 2
    sharing: str = "train_both"
    seed: int = 0
    pull_weight: float = 0.1
    initialisation: str = "strict"
    selectable: str = "seen"
    prompt_order: str = "key_id"
    prompt_scale: str = "unit"

    def __post_init__(self):
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(f"{name}={getattr(self, name)!r} is unknown; choose one of {sorted(choices)}.")
        for name in ("top_k", "prompt_length"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} is too small; it must be at least 1.")
        if not (math.isfinite(self.pull_weight) and self.pull_weight >= 0):
            raise UserError(f"pull_weight={self.pull_weight} must be 0 or more; a negative one would push keys away.")
        if self.assignment in ("kmeans", "similarity") and self.initialisation != "strict":
            raise UserError(
                f"assignment={self.assignment!r} sets keys when their task starts and needs initialisation='strict', "
                f"not {self.initialisation!r}."
            )

    @property
    def needs_query(self) -> bool:
        return True

    @property
    def num_tokens(self) -> int:
        """Vectors prepended to an input (P)."""
        return self.top_k * self.prompt_length

    @property
    def sees_future_data(self) -> bool:
        """Whether initialisation reads inputs of tasks that have not started; goes into the run record."""
        return self.initialisation == "paper"

    def table(self, num_tasks: int) -> np.ndarray:
        """assignment_JM for a stream of `num_tasks`; UserError when these settings cannot serve it."""
        return self._table(num_tasks)[0]

    def _table(self, num_tasks: int) -> tuple[np.ndarray, np.ndarray]:
        """The table, and copy_of_M: the key whose values a key starts from, -1 for none."""
        assignment_JM = assignment_table(
            "disjoint" if self._copies_similar else self.assignment,
            num_tasks=num_tasks,
            top_k=self.top_k,
            pool_size=self.pool_size,
            shared_per_pair=self.shared_per_pair,
            seed=self.seed,
        )
        if self.sharing == "copy_on_share" and not assignment_JM.all():
            return without_sharing(assignment_JM)
        return assignment_JM, np.full(assignment_JM.shape[1], -1, np.int32)

    @property
    def _copies_similar(self) -> bool:
        """Whether a later task's last keys are copies, chosen when it starts."""
        return self.assignment == "similarity" and self.sharing == "copy_on_share"

    def init(self, key: jax.Array, *, num_tasks: int, embedding_VD: jax.Array, query_width: int) -> tuple[Tree, Tree]:
        """params: keys (M, Dq), prompts (M, L, D), both float32.

        state: assignment (J, M) bool; ready (M,) bool, the key has been set; seen (J,) bool, the task was started;
        prompt_norm () float32, length of prompt vectors made from data; copy_of (M,) int32, the key that a key starts
        from, or -1; under "similarity" means (J, Dq), the tasks' mean queries.
        Keys that `start_task` sets later are zeros until then.
        """
        assignment_JM, copy_of_M = self._table(num_tasks)
        num_keys = assignment_JM.shape[1]
        length, width = self.prompt_length, embedding_VD.shape[1]
        random = self.initialisation in ("random_unit", "uniform")
        key_rng, prompt_rng = jax.random.split(key)
        if self.initialisation == "uniform":
            keys = jax.random.uniform(key_rng, (num_keys, query_width), jnp.float32, 0.0, 0.01)
            prompts = jax.random.uniform(prompt_rng, (num_keys, length, width), jnp.float32, 0.0, 0.01)
        elif random:
            keys = _unit(jax.random.normal(key_rng, (num_keys, query_width), jnp.float32))
            prompts = random_rows(prompt_rng, embedding_VD, num_keys * length).reshape(num_keys, length, width)
        else:
            keys = jnp.zeros((num_keys, query_width), jnp.float32)
            prompts = jnp.zeros((num_keys, length, width), jnp.float32)
        norm = 1.0
        if self.prompt_scale == "embedding":
            norm = jnp.linalg.norm(embedding_VD.astype(jnp.float32), axis=-1).mean()
        state = {
            "assignment": jnp.asarray(assignment_JM),
            "ready": jnp.full((num_keys,), random),
            "seen": jnp.zeros((num_tasks,), bool),
            "prompt_norm": jnp.asarray(norm, jnp.float32),
            "copy_of": jnp.asarray(copy_of_M),
        }
        if self.assignment == "similarity":
            state["means"] = jnp.zeros((num_tasks, query_width), jnp.float32)
        return {"keys": keys, "prompts": prompts}, state

    def start_task(
        self, params: Tree, state: Tree, *, task: int, sample: Sample, rng: np.random.Generator
    ) -> tuple[Tree, Tree]:
        """Marks `task` as seen and sets the keys and prompts that start with it. On the host; returns numpy arrays.

        Each new key takes a group of L training inputs: the key is the L2-normalised query of one random member, its
        vectors the L2-normalised mean input embeddings of the members. A shared key belongs to the first of its
        owners to start. Keys already set stay as they are, so starting a task twice changes nothing.
        """
        keys, prompts = np.array(params["keys"]), np.array(params["prompts"])
        state = {name: np.array(value) for name, value in state.items()}
        ready, seen = state["ready"], state["seen"]
        if self.assignment == "similarity" and not seen[task]:
            self._take_over(state, keys, task, sample, rng)
        copied_N = np.flatnonzero(state["assignment"][task] & (state["copy_of"] >= 0) & ~ready)
        sources_N = state["copy_of"][copied_N]
        keys[copied_N], prompts[copied_N], ready[copied_N] = keys[sources_N], prompts[sources_N], True
        for owner, new_N in self._new_keys(state["assignment"], ready, task):
            count, length = len(new_N), self.prompt_length
            query_ND, embedding_ND = (np.asarray(array, np.float32) for array in sample(owner, count * length, rng))
            assert query_ND.shape == (count * length, keys.shape[-1]), query_ND.shape
            assert embedding_ND.shape == (count * length, prompts.shape[-1]), embedding_ND.shape
            member_N = rng.integers(length, size=count)
            if self.assignment == "kmeans":
                keys[new_N] = kmeans(sample(owner, QUERIES_PER_TASK, rng)[0], count, rng)
            else:
                keys[new_N] = _unit_rows(query_ND).reshape(count, length, -1)[np.arange(count), member_N]
            vectors = _unit_rows(embedding_ND) * np.asarray(state["prompt_norm"])
            prompts[new_N] = vectors.reshape(count, length, -1)
            ready[new_N] = True
        seen[task] = True
        return {"keys": keys, "prompts": prompts}, state

    def _take_over(self, state: Tree, keys_MD: np.ndarray, task: int, sample: Sample, rng: np.random.Generator) -> None:
        """Completes the row of a task that starts with keys of the most similar task before it; changes `state`."""
        mean_D = np.asarray(sample(task, QUERIES_PER_TASK, rng)[0], np.float32).mean(axis=0)
        if state["seen"].any() and self.shared_per_pair:
            near_N = similar_keys(
                mean_D, state["means"], state["seen"], state["assignment"], keys_MD, self.shared_per_pair
            )
            if self._copies_similar:
                state["copy_of"][np.flatnonzero(state["assignment"][task])[-len(near_N) :]] = near_N
            else:
                state["assignment"][task, near_N] = True
        state["means"][task] = mean_D

    def _new_keys(self, assignment_JM: np.ndarray, ready_M: np.ndarray, task: int) -> list[tuple[int, np.ndarray]]:
        """(task whose data to use, ids of the keys to set) for each group of keys that is set when `task` starts."""
        if self.initialisation != "paper":
            groups = [(task, np.flatnonzero(assignment_JM[task] & ~ready_M))]
        elif assignment_JM.all():  # every task owns everything, so as published each sets an equal share
            shares = np.array_split(np.flatnonzero(~ready_M), len(assignment_JM))
            groups = list(enumerate(shares))
        else:
            first_owner_M = assignment_JM.argmax(axis=0)
            owners = range(len(assignment_JM))
            groups = [(owner, np.flatnonzero((first_owner_M == owner) & ~ready_M)) for owner in owners]
        return [(owner, new_N) for owner, new_N in groups if new_N.size]

    def prompt(
        self, params: Tree, state: Tree, task_B: jax.Array, query_BD: jax.Array, *, selection: str
    ) -> tuple[jax.Array, Tree]:
        """Chooses K prompts for each example by itself; nothing depends on the rest of the batch.

        Returns prompt_BPD float32 and aux: pull_B, the sum over K of the cosines; selected_BK int32 key ids and
        score_BK their cosines, both in the order of the block. Keys get gradients from pull_B only, prompts from
        prompt_BPD only, the query none. Cosines are not clamped: rounding may take one a little over 1.
        """
        assert selection in ("train", "pool", "oracle"), selection
        query_BD = jax.lax.stop_gradient(query_BD.astype(jnp.float32))
        # A similarity rounded to bfloat16, the default of a TPU's matrix unit, would choose other keys.
        cosine_BM = jnp.einsum("bd,md->bm", _unit(query_BD), _unit(params["keys"]), precision=jax.lax.Precision.HIGHEST)
        if selection == "pool":
            candidate_BM = self._selectable(state)[None, :]
        else:
            candidate_BM = jnp.asarray(state["assignment"])[task_B]
        # lax.top_k puts the lower id first among equals.
        ranked_BM = jnp.where(candidate_BM, jax.lax.stop_gradient(cosine_BM), -jnp.inf)
        _, selected_BK = jax.lax.top_k(ranked_BM, self.top_k)
        if self.prompt_order == "key_id":
            selected_BK = jnp.sort(selected_BK, axis=-1)
        score_BK = jnp.take_along_axis(cosine_BM, selected_BK, axis=1)
        chosen_BKLD = jnp.asarray(params["prompts"])[selected_BK]
        b, k, length, d = chosen_BKLD.shape
        aux = {"pull_B": score_BK.sum(axis=1), "selected_BK": selected_BK, "score_BK": score_BK}
        return chosen_BKLD.reshape(b, k * length, d), aux

    def _selectable(self, state: Tree) -> jax.Array:
        if self.selectable == "all":
            return jnp.asarray(state["ready"])
        owned_JM = jnp.asarray(state["assignment"]) & jnp.asarray(state["seen"])[:, None]
        return jnp.asarray(state["ready"]) & owned_JM.any(axis=0)

    def active_rows(self, state: Tree, task_B: jax.Array) -> Tree:
        """bool_M for keys and for prompts: the ready rows owned by any task of the batch, chosen or not."""
        assignment_JM = jnp.asarray(state["assignment"])
        if self.sharing == "freeze_after_first_owner" and self.assignment not in ("learned", "all_to_all"):
            assignment_JM = first_owner_only(assignment_JM)
        active_M = assignment_JM[task_B].any(axis=0) & state["ready"]
        return {"keys": active_M, "prompts": active_M}

    def param_axes(self) -> dict[str, tuple[str, ...]]:
        return {"keys": ("prompt", "query"), "prompts": ("prompt", "prompt_token", "embed")}


def _unit(x: jax.Array) -> jax.Array:
    """x / max(norm, 1e-6) along the last axis; the gradient at x = 0 is finite."""
    return x / jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))


def _unit_rows(rows_ND: np.ndarray) -> np.ndarray:
    return rows_ND / np.maximum(np.linalg.norm(rows_ND, axis=-1, keepdims=True), 1e-6)
