"""The section of prompt pools: of continual runs, and of studies of retrieval."""

from collections.abc import Sequence

from codegen2_jax.reporting import pool_figures
from codegen2_jax.reporting.exhibits import Exhibit, Section
from codegen2_jax.reporting.finished_runs import Run, slug


def pools(runs: Sequence[Run], *, prefix: str = "", without: Sequence[str] = ()) -> Section:
    """A figure of each kind for every run with a pool; prefix: of names, without: kinds that no run here has."""
    parts: list = []
    several = len({len(run.tasks) for run in runs}) > 1
    pools = [run for run in runs if run.diagnostic("key_usage") is not None]
    others = [run.name for run in runs if run not in pools]
    if others:
        parts.append(f"No prompt pool, and so nothing here, in {'; '.join(others)}.")
    for run in pools:
        parts.append(f"# {run.name}" + (f", {len(run.tasks)} tasks" if several else ""))
        for name, (draw, title, caption, alt, reason) in POOL.items():
            if name in without:
                continue
            found = draw(run)
            if found is None:
                parts.append(f"{title}: left out, {reason}.")
                continue
            drawing, table = found
            if name == "query_cosine":
                caption += _nearest_mean(run)
            parts.append(
                Exhibit(
                    name=f"{prefix}{slug(run, runs)}_{name}",
                    title=title,
                    caption=caption,
                    table=table,
                    drawing=drawing,
                    alt=f"{alt} {run.name}.",
                )
            )
    return Section(name=f"{prefix}pool", title="The prompt pool", parts=parts)


POOL = {
    "plane": (
        pool_figures.plane,
        "Keys and queries in a plane",
        "Small points are queries of scored inputs; diamonds are keys, in the colour of the task that owns them, grey "
        "when several or none do, hollow until that task begins. The axes are the principal axes of the queries, "
        "fitted once.",
        "Scatter plot of queries and keys after each stage of",
        "as the scores.json of this run holds no key_plane and query_plane; runs of this version write them",
    ),
    "key_usage": (
        pool_figures.usage,
        "Who uses which key",
        "Share of each task's selections (scored inputs, task unknown) that falls on each key, after each stage: the "
        "stronger, the more. A line under a cell says that the task owns the key.",
        "Heat map of keys by tasks after each stage of",
        "as there is no key_usage",
    ),
    "own_key_recall": (
        pool_figures.recall,
        "Own keys found again",
        "own_key_recall on test: the share of a task's keys (of k, if it owns more) among those that its inputs "
        "choose. Dotted, where it is below 1: what is left when later owners take every shared key.",
        "Lines of own-key recall by stage for each task of",
        "as every key belongs to every task, so that none can be found again",
    ),
    "query_cosine": (
        pool_figures.separation,
        "How far apart the queries lie",
        "Mean cosine of pairs of queries, within a task on the diagonal and between tasks off it.",
        "Matrix of mean cosines between queries of tasks of",
        "as there is no query_cosine",
    ),
}


def _nearest_mean(run: Run) -> str:
    values = run.diagnostic("nearest_mean_accuracy")
    if values is None or values[-1] is None:
        return ""
    return f" The nearest task mean is the right one for {100 * values[-1]:.0f} % of the queries."
