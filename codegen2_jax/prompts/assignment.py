"""Which task owns which key of a prompt pool: the table A, built once and from then on data in the checkpoint.

J tasks in the stream, M keys in the pool. Training and metrics read only the table; a new strategy is one function
`(num_tasks, top_k, pool_size, shared_per_pair, rng) -> assignment_JM` in `ASSIGNMENTS`. Two strategies look at data
when a task starts (prompts/pool.py): "similarity" completes the table then, and "kmeans" is the disjoint table whose
keys start at the centres of the task's queries.
"""

import itertools
import warnings
from collections import deque
from collections.abc import Callable

import numpy as np

from codegen2_jax.errors import UserError

KEYS_PER_TASK = 25  # `paper_text`: 100 keys for the paper's four tasks
LEARNED_POOL_SIZE = 100
MAX_DRAWS = 10_000


def assignment_table(
    name: str,
    *,
    num_tasks: int,
    top_k: int,
    pool_size: int | None = None,
    shared_per_pair: int = 2,
    seed: int = 0,
) -> np.ndarray:
    """The table assignment_JM (bool): A[t, i] is true when task t owns key i. Every row owns at least `top_k` keys.

    `name` is a key of ASSIGNMENTS, `pool_size` the number of keys M (None: what the strategy itself asks for),
    `shared_per_pair` the keys that each pair of tasks shares in "pairwise" and that a later task takes over in
    "similarity" (whose rows are complete only once their tasks have started), `seed` the chance in "random" and
    "balanced". Combinations that leave a task short of keys, or that would change M silently, are UserErrors.
    """
    if name not in ASSIGNMENTS:
        raise UserError(f"assignment {name!r} is unknown; choose one of {sorted(ASSIGNMENTS)}.")
    for argument, value, lowest in (("num_tasks", num_tasks, 1), ("top_k", top_k, 1), ("pool_size", pool_size, 1)):
        if value is not None and value < lowest:
            raise UserError(f"{argument}={value} is too small; it must be at least {lowest}.")
    if shared_per_pair < 0:
        raise UserError(f"shared_per_pair={shared_per_pair} is too small; it must be at least 0.")
    rng = np.random.default_rng((seed, 7))
    assignment_JM = ASSIGNMENTS[name](num_tasks, top_k, pool_size, shared_per_pair, rng)
    assert name == "similarity" or assignment_JM.sum(axis=1).min() >= top_k
    return assignment_JM


def _disjoint(num_tasks: int, top_k: int, pool_size: int | None, shared_per_pair: int, rng) -> np.ndarray:
    """`top_k` own keys per task, so M = J * top_k."""
    served = "" if pool_size is None else f"; {pool_size} keys would serve at most {_tasks(pool_size // top_k)}"
    _require_size("disjoint", pool_size, num_tasks * top_k, f"top_k={top_k} for each of {_tasks(num_tasks)}{served}")
    return _blocks(num_tasks, top_k)


def _paper_text(num_tasks: int, top_k: int, pool_size: int | None, shared_per_pair: int, rng) -> np.ndarray:
    """Equal blocks of own keys, 25 per task unless `pool_size` says otherwise: the text of arXiv 2307.02435.

    With 4 tasks that is the paper's pool of 100; top_k are then chosen among a task's 25.
    """
    return _equal_blocks("paper_text", num_tasks, top_k, pool_size)


def _equal_blocks(name: str, num_tasks: int, top_k: int, pool_size: int | None) -> np.ndarray:
    """For the assignment of this name, which errors speak of."""
    if pool_size is None:
        pool_size = KEYS_PER_TASK * num_tasks
    if pool_size % num_tasks:
        raise UserError(
            f"assignment {name!r} cuts the pool in equal blocks, but pool_size={pool_size} is no multiple of "
            f"{_tasks(num_tasks)}; use {pool_size // num_tasks * num_tasks or num_tasks} or leave it unset."
        )
    if pool_size // num_tasks < top_k:
        raise UserError(
            f"assignment {name!r} leaves {pool_size // num_tasks} of {pool_size} keys to each of "
            f"{_tasks(num_tasks)}, fewer than top_k={top_k}; it serves at most {_tasks(pool_size // top_k)}: "
            "lower TOP_K or raise pool_size."
        )
    return _blocks(num_tasks, pool_size // num_tasks)


def _learned(num_tasks: int, top_k: int, pool_size: int | None, shared_per_pair: int, rng) -> np.ndarray:
    """Every task owns every key: plain prompt pooling, which learns its own assignment."""
    pool_size = LEARNED_POOL_SIZE if pool_size is None else pool_size
    if pool_size < top_k:
        raise UserError(f"top_k={top_k} exceeds pool_size={pool_size}; lower TOP_K or raise pool_size.")
    return np.ones((num_tasks, pool_size), bool)


def _all_to_all(num_tasks: int, top_k: int, pool_size: int | None, shared_per_pair: int, rng) -> np.ndarray:
    """All tasks share one block of `top_k` keys: a pool that is one shared prompt, the lower bound."""
    _require_size("all_to_all", pool_size, top_k, "one block of TOP_K keys")
    return np.ones((num_tasks, top_k), bool)


def _pairwise(num_tasks: int, top_k: int, pool_size: int | None, shared_per_pair: int, rng) -> np.ndarray:
    """Own keys, and `shared_per_pair` keys for each pair of tasks: what the released code of arXiv 2307.02435 does.

    A task owns e = top_k - s (J - 1) keys alone and s with each other task, exactly top_k together. Keys are made in
    blocks of e + s (J - 1) / 2 per task; each task keeps the first e of its block, the rest form one queue, and the
    pairs (0, 1), (0, 2), ... take s each from its front. For 4 tasks, top_k=20, s=2: 68 keys, 14 of them exclusive.
    """
    shared = shared_per_pair * (num_tasks - 1)
    exclusive = top_k - shared
    largest = max(
        j for j in range(1, top_k + 2) if shared_per_pair * (j - 1) <= top_k and shared_per_pair * (j - 1) % 2 == 0
    )
    if exclusive < 0:
        raise UserError(
            f"assignment 'pairwise' with top_k={top_k} and shared_per_pair={shared_per_pair} serves at most "
            f"{_tasks(largest)}, not {num_tasks}; raise TOP_K, lower shared_per_pair, or use POOL_PRESET='disjoint'."
        )
    if shared % 2:
        raise UserError(
            f"assignment 'pairwise' needs shared_per_pair * (num_tasks - 1) to be even, not {shared}; make "
            f"shared_per_pair even ({shared_per_pair} serves an odd number of tasks, at most {_tasks(largest)})."
        )
    if exclusive == 0:
        warnings.warn(
            f"assignment 'pairwise' leaves no task a key of its own ({_tasks(num_tasks)}, top_k={top_k}, "
            f"shared_per_pair={shared_per_pair}).",
            stacklevel=3,
        )
    block = exclusive + shared // 2
    _require_size("pairwise", pool_size, num_tasks * block, f"as {_tasks(num_tasks)} at top_k={top_k} share them")
    assignment_JM = np.zeros((num_tasks, num_tasks * block), bool)
    queue: deque[int] = deque()
    for task in range(num_tasks):
        assignment_JM[task, task * block : task * block + exclusive] = True
        queue.extend(range(task * block + exclusive, (task + 1) * block))
    for first, second in itertools.combinations(range(num_tasks), 2):
        keys = [queue.popleft() for _ in range(shared_per_pair)]
        assignment_JM[first, keys] = assignment_JM[second, keys] = True
    assert not queue
    return assignment_JM


def _random(num_tasks: int, top_k: int, pool_size: int | None, shared_per_pair: int, rng) -> np.ndarray:
    """Every key gets one owner, uniformly; drawn again until every task owns `top_k`."""
    pool_size = KEYS_PER_TASK * num_tasks if pool_size is None else pool_size
    for _ in range(MAX_DRAWS):
        assignment_JM = rng.integers(num_tasks, size=pool_size)[None] == np.arange(num_tasks)[:, None]
        if assignment_JM.sum(axis=1).min() >= top_k:
            return assignment_JM
    raise UserError(
        f"assignment 'random' left a task of {num_tasks} with fewer than top_k={top_k} of {pool_size} keys in "
        f"{MAX_DRAWS} draws; raise pool_size well above {num_tasks * top_k}, or use 'balanced'."
    )


def _balanced(num_tasks: int, top_k: int, pool_size: int | None, shared_per_pair: int, rng) -> np.ndarray:
    """A random permutation of the keys cut in equal blocks: "paper_text" without the order of the ids."""
    blocks_JM = _equal_blocks("balanced", num_tasks, top_k, pool_size)
    return blocks_JM[:, rng.permutation(blocks_JM.shape[1])]


def _similarity(num_tasks: int, top_k: int, pool_size: int | None, shared_per_pair: int, rng) -> np.ndarray:
    """The first task owns `top_k` keys, every later one top_k - shared_per_pair new ones.

    A later task takes the rest from the most similar task before it, when it starts; the rows here lack those.
    """
    own = top_k - shared_per_pair
    if own < 1:
        raise UserError(
            f"assignment 'similarity' with top_k={top_k} and shared_per_pair={shared_per_pair} leaves later tasks no "
            "key of their own; lower shared_per_pair."
        )
    needed = top_k + (num_tasks - 1) * own
    _require_size("similarity", pool_size, needed, f"top_k={top_k}, then {own} new ones for each later task")
    return np.repeat(np.eye(num_tasks, dtype=bool), [top_k] + [own] * (num_tasks - 1), axis=1)


ASSIGNMENTS: dict[str, Callable[[int, int, int | None, int, np.random.Generator], np.ndarray]] = {
    "disjoint": _disjoint,
    "kmeans": _disjoint,
    "pairwise": _pairwise,
    "code": _pairwise,  # the name of the published preset: top_k=20, shared_per_pair=2
    "random": _random,
    "balanced": _balanced,
    "similarity": _similarity,
    "paper_text": _paper_text,
    "learned": _learned,
    "all_to_all": _all_to_all,
}


def _blocks(num_tasks: int, keys_per_task: int) -> np.ndarray:
    return np.repeat(np.eye(num_tasks, dtype=bool), keys_per_task, axis=1)


def _require_size(name: str, given: int | None, needed: int, because: str) -> None:
    if given is not None and given != needed:
        raise UserError(
            f"assignment {name!r} needs a pool of exactly {needed} keys ({because}), not pool_size={given}; "
            "leave pool_size unset."
        )


def _tasks(count: int) -> str:
    return f"{count} task" if count == 1 else f"{count} tasks"
