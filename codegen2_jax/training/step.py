"""The pure step: what it computes, what it may change, and the state it maps to the next one.

    params = {"model": ..., "prompt": ...}      labels: ordered (regex, "train" | "freeze"), every leaf must match
    train_step(state, batch) -> state, metrics

Nothing here knows the name of a method: a method is a prompt, a list of labels and an optimizer.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp

from codegen2_jax.errors import UserError
from codegen2_jax.sharding import partitioning
from codegen2_jax.sharding.partitioning import leaf_name
from codegen2_jax.training import head_loss

Labels = tuple[tuple[str, str], ...]


@flax.struct.dataclass
class TrainState:
    """Everything that the next step depends on, besides the batch.

    step: int32 scalar, steps taken in this stage. trainable, frozen: the two halves of the parameter tree.
    opt_state: for the trainable half only. prompt_state: the data of the prompt (table A, ready, seen).
    skipped: int32 scalar, steps in a row whose loss or gradient was not finite (they change nothing else).
    """

    step: jax.Array
    trainable: Any
    frozen: Any
    opt_state: Any
    prompt_state: Any
    skipped: jax.Array


def split_params(params: Any, labels: Labels) -> tuple[Any, Any]:
    """Parts a nested dictionary into its trainable and its frozen half; every leaf must match a rule.

    Raises UserError naming the first leaf that no rule matches, or a label that is neither "train" nor "freeze".
    """
    halves: dict[str, dict] = {"train": {}, "freeze": {}}
    for name, leaf in flax.traverse_util.flatten_dict(params, sep="/").items():
        label = next((label for pattern, label in labels if re.fullmatch(pattern, name)), None)
        if label is None:
            raise UserError(f"No label for {name} in {[p for p, _ in labels]}; add a pattern, or ('.*', 'freeze').")
        if label not in halves:
            raise UserError(f"Label {label!r} of {name} is unknown; use 'train' or 'freeze'.")
        halves[label][name] = leaf
    return tuple(flax.traverse_util.unflatten_dict(half, sep="/") for half in halves.values())


def merge_params(trainable: Any, frozen: Any) -> Any:
    flat = flax.traverse_util.flatten_dict(frozen, sep="/") | flax.traverse_util.flatten_dict(trainable, sep="/")
    return flax.traverse_util.unflatten_dict(flat, sep="/")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner:
    """A language model and the prompt put before its input: what a batch costs, and which rows it may move.

    model: `models.language_models.EncoderDecoder` (or anything with its methods). prompt: a prompt of `prompts`, or
    None for none. loss_blocks: into how many blocks the head and its loss are cut (`head_loss.head_loss`), 1 for none;
    None: by `head_loss.num_blocks`. logit_shards: how many devices the logits lie on.
    """

    model: Any
    prompt: Any = None
    loss_blocks: int | None = None
    logit_shards: int = 1

    def losses(self, params, prompt_state, batch, loss_mask_BT, *, selection, dropout_key=None, z_weight=0.0):
        """`head_loss.HeadLoss` of the true tokens, and the sum over the batch of the pull term (0 without a pool)."""
        prompt_BPD, pull = None, jnp.zeros((), jnp.float32)
        if self.prompt is not None:
            query_BD = batch.get("query_BD")
            prompt_BPD, aux = self.prompt.prompt(
                params["prompt"], prompt_state, batch["task_B"], query_BD, selection=selection
            )
            pull = jnp.sum(aux["pull_B"])
        x_BTD = self.model.last_states(params["model"], batch, prompt_BPD, dropout_key=dropout_key)
        head = head_loss.Head(*self.model.head_weights(params["model"]))
        blocks, shards = self.loss_blocks, self.logit_shards
        if blocks is None:
            positions = x_BTD.shape[0] * x_BTD.shape[1]
            blocks = head_loss.num_blocks(positions, head.table_VD.shape[0], shards=shards)
        found = head_loss.head_loss(
            x_BTD, head, batch["targets_BT"], loss_mask_BT, z_weight=z_weight, blocks=blocks, shards=shards
        )
        return found, pull

    def rows(self, trainable, prompt_state, task_B):
        """The row masks of a step, a tree like `trainable` of booleans that broadcast against its leaves."""
        rows = jax.tree.map(lambda _: jnp.ones((), bool), trainable)
        if self.prompt is not None and "prompt" in trainable:
            active = self.prompt.active_rows(prompt_state, task_B)
            rows["prompt"] = {
                name: active[name].reshape((-1,) + (1,) * (leaf.ndim - 1)) if name in active else jnp.ones((), bool)
                for name, leaf in trainable["prompt"].items()
            }
        return rows

    def row_shapes(self, trainable, prompt_state):
        """The shapes of `rows`, for an optimizer that keeps counts per row; takes arrays or their shapes."""
        return jax.eval_shape(self.rows, trainable, prompt_state, jax.ShapeDtypeStruct((1,), jnp.int32))

    def param_axes(self) -> dict:
        """Logical axis names of every parameter, a tree like the parameters."""
        axes = {"model": self.model.param_axes()}
        if self.prompt is not None:
            axes["prompt"] = self.prompt.param_axes()
        return axes


def _microbatches(batch, count):
    return jax.tree.map(lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:]), batch)


def make_train_step(
    learner: Learner,
    optimizer,
    *,
    seed: int,
    accumulation_steps: int = 1,
    dropout: bool = False,
    advance: bool = True,
    z_loss: float = 0.0,
    in_parts: Callable | None = None,
):
    """Builds `train_step(state, batch) -> (state, metrics)`, pure and ready for `jax.jit`.

    Loss = sum of token losses / true tokens of the global batch - pull_weight * mean over examples of the pull term
    (arXiv 2307.02435, equations 1 and 2, with the sign of its released code: a minus pulls keys towards queries).
    A step whose loss or gradient norm is not finite changes nothing but `step` and `skipped`.

    accumulation_steps: the batch is cut into this many micro-batches, whose gradients are summed in float32.
    z_loss: weight of `losses.z_loss` per true token; the loss that is reported is without it.
    in_parts: how gradients of a batch are summed over its parts (`ordered_reduction.in_order`, for a function of
      arguments, rows and the number of the part); None: as the compiler likes.
    advance: False for a step that does not count (replay between epochs): neither `step` nor the learning rate's
      schedule moves on.
    """
    base_key = jax.random.key(seed)
    pull_weight = 0.0 if learner.prompt is None else learner.prompt.pull_weight

    def objective(trainable, frozen, prompt_state, batch, tokens, examples, key):
        params = merge_params(trainable, frozen)
        found, pull = learner.losses(
            params,
            prompt_state,
            batch,
            batch["loss_mask_BT"],
            selection="train",
            dropout_key=key if dropout else None,
            z_weight=z_loss,
        )
        pull = pull / examples
        metrics = {"loss": found.cross_entropy / tokens, "accuracy": found.correct / tokens, "pull": pull}
        return found.objective / tokens - pull_weight * pull, metrics

    def train_step(state: TrainState, batch):
        key = jax.random.fold_in(base_key, state.step)
        if not advance:  # many such steps share one number; their records tell them apart
            key = jax.random.fold_in(jax.random.fold_in(key, 1), jnp.sum(batch["record_B"]))
        tokens = jnp.maximum(jnp.sum(batch["loss_mask_BT"], dtype=jnp.float32), 1.0)
        examples = batch["targets_BT"].shape[0]
        grad_fn = jax.grad(objective, has_aux=True)

        def one(micro, key):
            if in_parts is None:
                return grad_fn(state.trainable, state.frozen, state.prompt_state, micro, tokens, examples, key)
            fixed = (state.trainable, state.frozen, state.prompt_state)

            def of_part(shared, rows, number):
                *fixed, tokens, key = shared
                return grad_fn(*fixed, rows, tokens, examples, jax.random.fold_in(key, number))

            return in_parts(of_part)((*fixed, tokens, key), micro)

        if accumulation_steps == 1:
            grads, metrics = one(batch, key)
        else:

            def body(total, inputs):
                micro, index = inputs
                return jax.tree.map(jnp.add, total, one(micro, jax.random.fold_in(key, index))), None

            micros = _microbatches(batch, accumulation_steps)
            shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], micros), key)
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            (grads, metrics), _ = jax.lax.scan(body, zeros, (micros, jnp.arange(accumulation_steps)))

        rows = learner.rows(state.trainable, state.prompt_state, batch["task_B"])
        grads = jax.tree.map(lambda g, row: jnp.where(row, g, 0.0), grads, rows)
        grad_norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)
        updates, opt_state = optimizer.update(
            grads, state.opt_state, state.trainable, rows=rows, advance=advance, finite=finite
        )
        # Select, never scale: 0 * NaN is NaN.
        trainable = jax.tree.map(lambda p, u: jnp.where(finite, (p + u).astype(p.dtype), p), state.trainable, updates)
        new_state = state.replace(
            step=state.step + advance,
            trainable=trainable,
            opt_state=opt_state,
            skipped=jnp.where(finite, 0, state.skipped + 1),
        )
        return new_state, {**metrics, "grad_norm": grad_norm, "tokens": tokens, "skipped": new_state.skipped}

    return train_step


def make_loss_step(learner: Learner):
    """Builds `loss_step(state, batch) -> (summed token loss, true tokens)` for validation, selection "pool"."""

    def loss_step(state: TrainState, batch):
        params = merge_params(state.trainable, state.frozen)
        mask_BT = batch["loss_mask_BT"] & batch["valid_B"][:, None]
        found, _ = learner.losses(params, state.prompt_state, batch, mask_BT, selection="pool")
        return found.cross_entropy, found.tokens

    return loss_step


def state_shardings(layout: partitioning.Layout, state_shapes: TrainState, params_axes: Any) -> Any:
    """The sharding of every leaf of a state: a moment lies like its parameter, all else is replicated.

    A leaf of the optimizer belongs to a parameter when its path ends with the parameter's path and the shapes agree.
    """
    params_shapes = merge_params(state_shapes.trainable, state_shapes.frozen)
    of_params = {
        leaf_name(path): (sharding, shape.shape)
        for (path, sharding), shape in zip(
            jax.tree_util.tree_leaves_with_path(partitioning.shardings(layout, params_axes, params_shapes)),
            jax.tree.leaves(params_shapes),
            strict=True,
        )
    }

    def sharding_of(path, leaf):
        parts = leaf_name(path).split("/")
        for start in range(len(parts)):
            sharding, shape = of_params.get("/".join(parts[start:]), (None, None))
            if shape == leaf.shape:
                return sharding
        return partitioning.replicated(layout)

    return jax.tree_util.tree_map_with_path(sharding_of, state_shapes)
