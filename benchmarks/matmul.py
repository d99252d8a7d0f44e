"""GFLOP/s of float32 matrix products in JAX and in torch: how far apart the two libraries start on this machine.

  python benchmarks/matmul.py

Shapes are those of CodeT5-small's step on 1,024 tokens: the products of its layers and of its head, and one large
square. "tn" is the product of a weight's gradient, whose left factor is read transposed. Half a minute.
"""

import time
from pathlib import Path

import contest

SHAPES = {"square": (2048, 2048, 2048), "widen": (1024, 512, 2048), "narrow": (1024, 2048, 512)}
SHAPES["head"] = (400, 512, 32100)


def rates_of(run, floating_point_operations: int, repeats: int = 7) -> tuple[float, float, float]:
    """GFLOP/s of the median run, the slowest and the fastest, after one to warm up."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    seconds = sorted(seconds[1:])
    return tuple(floating_point_operations / one / 1e9 for one in (seconds[repeats // 2], seconds[-1], seconds[0]))


def main() -> None:
    options = contest.Parser(__doc__)
    options.add_argument("--threads", type=contest.count, default=2)
    options.add_argument("--out", default="benchmarks/results/matmul.json")
    arguments = options.parse_args()
    contest.pin(arguments.threads)
    import jax
    import torch

    torch.set_num_threads(arguments.threads)
    products = {"nn": jax.jit(lambda a, b: a @ b), "tn": jax.jit(lambda a, b: a.T @ b)}
    rows = []
    print("| product | m x k x n | jax (slowest - fastest) | torch (slowest - fastest) |\n|---|---|---|---|")
    for name, (m, k, n) in SHAPES.items():
        for form, product in products.items():
            left = (m, k) if form == "nn" else (k, m)
            ours = [jax.numpy.ones(shape) for shape in (left, (k, n))]
            theirs = [torch.ones(shape) for shape in (left, (k, n))]
            rates = {
                "jax": rates_of(lambda f=product, x=ours: f(*x).block_until_ready(), 2 * m * k * n),
                "torch": rates_of(lambda t=form, x=theirs: (x[0] if t == "nn" else x[0].T) @ x[1], 2 * m * k * n),
            }
            rows.append({"product": name, "form": form, "shape": [m, k, n]})
            rows[-1] |= {library: median for library, (median, *_) in rates.items()}
            rows[-1] |= {f"{library}_spread": spread for library, (_, *spread) in rates.items()}
            cells = [f"{median:.0f} ({slowest:.0f} - {fastest:.0f})" for median, slowest, fastest in rates.values()]
            print(f"| {name} {form} | {m} x {k} x {n} | {' | '.join(cells)} |", flush=True)
    contest.write(Path(arguments.out), {"machine": contest.machine(arguments.threads), "gflops_per_second": rows})


if __name__ == "__main__":
    main()
