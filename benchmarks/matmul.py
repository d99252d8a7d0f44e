"""GFLOP/s of float32 matrix products in JAX and in torch: how far apart the two libraries start on this machine.

  python benchmarks/matmul.py

Shapes are those of CodeT5-small's step on 1,024 tokens: the products of its layers and of its head, and one large
square. "tn" is the product of a weight's gradient, whose left factor is read transposed. Half a minute.
"""

import argparse
import time
from pathlib import Path

import contest

SHAPES = {"square": (2048, 2048, 2048), "widen": (1024, 512, 2048), "narrow": (1024, 2048, 512)}
SHAPES["head"] = (400, 512, 32100)


def median_rate(run, floating_point_operations: int, repeats: int = 7) -> float:
    """GFLOP/s of the median run, after one to warm up."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return floating_point_operations / sorted(seconds[1:])[repeats // 2] / 1e9


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--out", default="benchmarks/results/matmul.json")
    arguments = options.parse_args()
    contest.pin(arguments.threads)
    import jax
    import torch

    torch.set_num_threads(arguments.threads)
    products = {"nn": jax.jit(lambda a, b: a @ b), "tn": jax.jit(lambda a, b: a.T @ b)}
    rows = []
    print("| product | m x k x n | jax | torch |\n|---|---|---|---|")
    for name, (m, k, n) in SHAPES.items():
        for form, product in products.items():
            left = (m, k) if form == "nn" else (k, m)
            ours = [jax.numpy.ones(shape) for shape in (left, (k, n))]
            theirs = [torch.ones(shape) for shape in (left, (k, n))]
            rates = {
                "jax": median_rate(lambda f=product, x=ours: f(*x).block_until_ready(), 2 * m * k * n),
                "torch": median_rate(lambda t=form, x=theirs: (x[0] if t == "nn" else x[0].T) @ x[1], 2 * m * k * n),
            }
            rows.append({"product": name, "form": form, "shape": [m, k, n], **rates})
            print(f"| {name} {form} | {m} x {k} x {n} | {rates['jax']:.0f} | {rates['torch']:.0f} |", flush=True)
    contest.write(Path(arguments.out), {"machine": contest.machine(arguments.threads), "gflops_per_second": rows})


if __name__ == "__main__":
    main()
