"""k-means on unit vectors, small and deterministic: where the keys of a task begin that has several kinds of input."""

import numpy as np

MAX_ROUNDS = 50


def kmeans(rows_ND: np.ndarray, num_clusters: int, rng: np.random.Generator) -> np.ndarray:
    """float32 (num_clusters, D): unit centres of the normalised rows (Lloyd's algorithm from a k-means++ start).

    A cluster that loses all its rows begins again at the row that is farthest from its centre. With fewer rows than
    clusters, rows serve more than once.
    """
    rows_ND = _unit(np.asarray(rows_ND, np.float32))
    if len(rows_ND) < num_clusters:
        rows_ND = np.resize(rows_ND, (num_clusters, rows_ND.shape[1]))
    centre_KD = _spread(rows_ND, num_clusters, rng)
    nearest_N = None
    for _ in range(MAX_ROUNDS):
        cosine_NK = rows_ND @ centre_KD.T
        found_N = cosine_NK.argmax(axis=1)
        if nearest_N is not None and (found_N == nearest_N).all():
            break
        nearest_N = found_N
        own_N = cosine_NK[np.arange(len(rows_ND)), nearest_N].copy()
        for cluster in range(num_clusters):
            members = nearest_N == cluster
            if not members.any():
                farthest = own_N.argmin()
                own_N[farthest] = np.inf  # the next empty cluster takes another row
                centre_KD[cluster] = rows_ND[farthest]
            else:
                centre_KD[cluster] = _unit(rows_ND[members].mean(axis=0))
    return centre_KD


def _spread(rows_ND: np.ndarray, num_clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Rows drawn one by one with a chance that grows with the distance from those already drawn (k-means++)."""
    chosen = [int(rng.integers(len(rows_ND)))]
    distance_N = np.full(len(rows_ND), np.inf)
    for _ in range(num_clusters - 1):
        distance_N = np.minimum(distance_N, np.maximum(2.0 - 2.0 * rows_ND @ rows_ND[chosen[-1]], 0.0))
        total = distance_N.sum()
        chances = distance_N / total if total > 1e-9 else np.full(len(rows_ND), 1 / len(rows_ND))
        chosen.append(int(rng.choice(len(rows_ND), p=chances / chances.sum())))
    return rows_ND[chosen].copy()


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6)
