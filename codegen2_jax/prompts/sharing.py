"""Keys that two tasks have in common: which ones, and what becomes of them when the second owner starts.

    sharing                     a key shared by tasks t < u
    "train_both"                is trained by t and then by u
    "freeze_after_first_owner"  is trained by t only; u uses it as it is
    "copy_on_share"             becomes two keys: u starts from a copy of t's and trains that

J tasks, M keys, Dq query width.
"""

import numpy as np

SHARING = ("train_both", "freeze_after_first_owner", "copy_on_share")


def without_sharing(assignment_JM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The table with a key of its own for every further owner, and copy_of_M: the key it starts from, or -1.

    New keys stand behind the old ones, by task, then by the key they copy.
    """
    first_owner_M = assignment_JM.argmax(axis=0)
    tasks, copied = np.nonzero(assignment_JM & (np.arange(len(assignment_JM))[:, None] != first_owner_M))
    own_JM = np.arange(len(assignment_JM))[:, None] == np.concatenate([first_owner_M, tasks])
    return own_JM, np.concatenate([np.full(len(first_owner_M), -1), copied]).astype(np.int32)


def first_owner_only(assignment_JM):
    """bool (J, M), NumPy or JAX: the table in which a key belongs to the first of its owners alone."""
    return assignment_JM & (assignment_JM.cumsum(axis=0) == 1)


def similar_keys(
    mean_query_D: np.ndarray, means_JD: np.ndarray, seen_J: np.ndarray, assignment_JM: np.ndarray, keys_MD, count: int
) -> np.ndarray:
    """Ids of the `count` keys nearest to a new task's mean query among those of the seen task most similar to it.

    Cosine similarity throughout; ties go to the lower number.
    """
    unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6)  # noqa: E731
    likeness_J = np.where(seen_J, unit(means_JD) @ unit(mean_query_D), -np.inf)
    owned_N = np.flatnonzero(assignment_JM[likeness_J.argmax()])
    order = np.argsort(-(unit(keys_MD[owned_N]) @ unit(mean_query_D)), kind="stable")
    return np.sort(owned_N[order[:count]])
