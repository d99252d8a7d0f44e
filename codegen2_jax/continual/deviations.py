"""In what a run differs from what arXiv 2307.02435 and its released code do, read off the run's configuration.

What was published is in sections 1.4 to 1.6, 2 and 3 of the specification: values by method where they differ. A value
whose published counterpart is not known is not compared.
"""

from typing import Any

PAPER_MODEL = "Salesforce/codet5-small"
PAPER_BEAMS, PAPER_BUFFER, PAPER_WARMUP, PAPER_JOINT_WARMUP = 5, 5000, 500, 1000
# Peak learning rates: of all weights by task, of prompts with a pool and without one.
FULL_RATE, CONCODE_RATE, POOL_RATE, SOFT_RATE, KEY_RATE = 5e-5, 1e-4, 10.0, 100.0, 0.1


def deviations(config: Any) -> list[str]:
    """Every known difference, one phrase each; config: a `ContinualLearning`."""
    parts = (_data, _tags, _prompt, _replay, _optimizer, _schedule, _scoring)
    return [phrase for part in parts for phrase in part(config)]


def _data(config: Any) -> list[str]:
    found = []
    if config.source.init_from != PAPER_MODEL:
        found.append(f"weights {config.source.init_from}, published {PAPER_MODEL}")
    if config.stream != "codetask_cl":
        found.append(f"stream {config.stream}, published codetask_cl")
    if config.walk == "joint":
        found += _differs("joint_exponent", config.joint_exponent, 0.7)
    return found


def _tags(config: Any) -> list[str]:
    found = ["no loss on padding"] if config.prompt is None else []
    if config.walk == "individual":  # published without any tag
        return found + ([] if config.tags == "none" else ["task tags in the model's input"])
    found.append("sources carry no new tag tokens, targets no tags")
    if config.tags == "none":
        found.append("no task tags")
    elif config.tags == "input" and _has_pool(config):
        found.append("task tags in the model's input, not in the query")
    return found


def _prompt(config: Any) -> list[str]:
    prompt = config.prompt
    if prompt is None:
        return []
    if not prompt.needs_query:
        return _differs("num_tokens", prompt.num_tokens, 100)
    found = ["no dropout in the query encoder"]
    if prompt.assignment not in ("code", "pairwise", "paper_text", "learned"):
        found.append(f"keys assigned by {prompt.assignment!r}, published 'code' (released) or 'paper_text' (described)")
    if prompt.assignment in ("code", "pairwise"):
        found += _differs("shared_per_pair", prompt.shared_per_pair, 2)
    if prompt.assignment in ("learned", "paper_text") and prompt.pool_size not in (None, 100):
        found.append(f"a pool of {prompt.pool_size} keys, published 100")
    found += _differs("top_k", prompt.top_k, 20) + _differs("prompt_length", prompt.prompt_length, 5)
    found += _differs("pull_weight", prompt.pull_weight, 0.1)
    found += _differs("sharing", prompt.sharing, "train_both")
    found += _differs("prompt_scale", prompt.prompt_scale, "unit")
    found += _differs("query_pooling", config.query_pooling, "mean")
    if not prompt.sees_future_data:
        found.append("keys and prompts start without data of later tasks")
    if prompt.selectable != "all":
        found.append("only keys of tasks already seen can be selected")
    if prompt.prompt_order != "score":
        found.append("prompts stand in the order of their keys, not of their scores")
    return found


def _replay(config: Any) -> list[str]:
    replay = config.replay
    if replay is None:
        return []
    found = []
    if replay.size != PAPER_BUFFER:
        found.append(f"a buffer of {replay.size:,} examples, published {PAPER_BUFFER:,} (table 1)")
    if replay.schedule != "epoch_end":
        found.append("replayed rows join every step instead of passes between epochs")
    else:
        found += _differs("replay batch_size", replay.rows_per_step(config.batch_size), 8)
        if not replay.with_current:
            found.append("the buffer lacks the task that is being learned")
    if replay.policy != "ring":
        found.append("the buffer is a reservoir, not a ring")
    return found


def _optimizer(config: Any) -> list[str]:
    optimizer = config.optimizer
    name = type(optimizer).__name__
    if name != "AdamW":
        return [f"optimizer {name} at {getattr(optimizer, 'learning_rate', None)}, published AdamW"]
    found, rate = [], optimizer.learning_rate
    if config.prompt is None:
        if config.walk == "joint":
            found += _differs("learning rate", rate, FULL_RATE)
        else:
            published = f"published {FULL_RATE:g}, on CONCODE {CONCODE_RATE:g}"
            found.append(f"learning rate {rate:g} for every task, {published}")
    else:
        found += _differs("learning rate of prompts", rate, POOL_RATE if _has_pool(config) else SOFT_RATE)
        if _has_pool(config):
            keys = next((value for pattern, value in optimizer.rates if pattern == "prompt/keys"), rate)
            found += _differs("learning rate of keys", keys, KEY_RATE)
    warmup = PAPER_JOINT_WARMUP if config.walk == "joint" else PAPER_WARMUP
    found += _differs("warm-up steps", optimizer.warmup_steps, warmup)
    if optimizer.clip_norm is not None:
        found.append(f"gradients clipped to norm {optimizer.clip_norm:g}, published without clipping")
    for name, published in (("schedule", "linear"), ("end_fraction", 0.0), ("decay_steps", None), ("eps", 1e-8)):
        found += _differs(name, getattr(optimizer, name), published)
    for name, published in (("b1", 0.9), ("b2", 0.999), ("weight_decay", 0.0), ("scale_by_rms", False)):
        found += _differs(name, getattr(optimizer, name), published)
    return found


def _schedule(config: Any) -> list[str]:
    return [
        f"{config.steps_per_task} steps for every task, published 15 to 100 epochs by task",
        f"batches of {config.batch_size}, published 8 or 16 a device by task",
        f"{config.evaluations_per_task} validations a task and patience {config.patience}, published one an epoch and "
        "2 to 5 by task",
    ]


def _scoring(config: Any) -> list[str]:
    found, decoding = [], config.decoding
    if config.eval_examples is not None:
        found.append(f"{config.eval_examples} examples of each split scored, published all")
    if decoding.selection_beams != PAPER_BEAMS:
        how = "greedily" if decoding.selection_beams == 1 else f"with {decoding.selection_beams} beams"
        found.append(f"validation decodes {how}, published with {PAPER_BEAMS} beams")
    found += _differs("beams of a score", decoding.scoring_beams, PAPER_BEAMS)
    found += _differs("length_penalty", decoding.length_penalty, 1.0)
    return found


def _has_pool(config: Any) -> bool:
    return config.prompt is not None and config.prompt.needs_query


def _differs(what: str, value: Any, published: Any) -> list[str]:
    return [] if value == published else [f"{what} {value}, published {published}"]
