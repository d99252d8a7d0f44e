"""A linear layer on a model's last state, and what finetuning it holds in memory.

Letters: B batch, S source length, T = 1, C classes, D width.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from codegen2_jax.data import converters
from codegen2_jax.data.understanding import Question
from codegen2_jax.errors import UserError
from codegen2_jax.sharding import partitioning
from codegen2_jax.sharding.compilation import jit_step
from codegen2_jax.training import attention_choice, head_loss, initialisation
from codegen2_jax.training.checkpoints import Checkpointer
from codegen2_jax.training.step import TrainState, make_train_step, merge_params, split_params, state_shardings

LENGTH_MULTIPLE = 64
TRAIN_EVERYTHING = ((".*", "train"),)


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A model and a linear layer on its last state; to the training step it is a learner with one position a row."""

    model: Any
    classes: int
    prompt: None = None

    def losses(self, params, prompt_state, batch, loss_mask_BT, *, selection, dropout_key=None, z_weight=0.0):
        """`head_loss.HeadLoss` over the rows, and 0."""
        del prompt_state, selection
        x_B1D, head = self._last(params, batch, dropout_key)
        found = head_loss.head_loss(x_B1D, head, batch["targets_BT"], loss_mask_BT, z_weight=z_weight)
        return found, jnp.zeros((), jnp.float32)

    def logits(self, params, batch) -> jax.Array:
        """float32[B, C]."""
        return head_loss.plain_logits(*self._last(params, batch))[:, 0]

    def _last(self, params, batch, dropout_key=None) -> tuple[jax.Array, head_loss.Head]:
        inputs = (batch["inputs_BS"], batch["inputs_mask_BS"])
        x_BD = self.model.last_state(params["model"], *inputs, dropout_key=dropout_key).astype(jnp.float32)
        return x_BD[:, None], head_loss.Head(params["head"]["weight"], params["head"]["bias"])

    def head(self, key: jax.Array) -> dict[str, jax.Array]:
        """A new head, weights normal with standard deviation d ** -0.5."""
        width = self.model.config.d_model
        weight_CD = jax.random.normal(key, (self.classes, width), jnp.float32) / math.sqrt(width)
        return {"weight": weight_CD, "bias": jnp.zeros(self.classes, jnp.float32)}

    def rows(self, trainable, prompt_state, task_B):
        """Every row may move."""
        return jax.tree.map(lambda _: jnp.ones((), bool), trainable)

    def param_axes(self) -> dict:
        """Logical axis names of every parameter."""
        head = {"weight": ("classes", "embed"), "bias": ("classes",)}
        return {"model": self.model.param_axes(), "head": head}


class Runtime:
    """The compiled functions of a run, its tokens, and the shapes and shardings of its state."""

    def __init__(self, config: Any, loaded: initialisation.LoadedModel, splits: dict[str, list[Question]]):
        self.config, self.loaded = config, loaded
        self.layout = partitioning.make_layout(config.mesh, config.axes)
        self.layout.check_batch(config.batch_size, config.accumulation_steps)
        most = int(min(config.max_tokens, getattr(loaded.model.config, "max_positions", math.inf)))
        self.tokens = {name: [token_ids(loaded, one.text, most) for one in split] for name, split in splits.items()}
        self.labels = {name: [one.label for one in split] for name, split in splits.items()}
        self.cut = sum(len(tokens) == most for split in self.tokens.values() for tokens in split)
        self.steps_per_epoch = len(self.tokens["train"]) // config.batch_size
        if not self.steps_per_epoch:
            raise UserError(f"batch_size={config.batch_size} exceeds the {len(splits['train'])} training examples.")
        model = attention_choice.resolved(loaded.model, self.layout, length=most)
        model = dataclasses.replace(model, constrain=self.layout.constrain)
        learner = Classifier(model, len(splits["train"][0].choices))
        axes, _ = split_params(learner.param_axes(), TRAIN_EVERYTHING)
        head = jax.eval_shape(learner.head, jax.random.key(0))
        shapes = {"model": loaded.model.param_shapes, "head": head}
        rows = jax.tree.map(lambda _: jnp.ones((), bool), shapes)
        optimizer = config.optimizer.transformation(config.num_epochs * self.steps_per_epoch, axes, rows)

        def new_state(model_params):
            params = {"model": model_params, "head": learner.head(jax.random.key(config.seed))}
            trainable, frozen = split_params(params, TRAIN_EVERYTHING)
            zero = jnp.zeros((), jnp.int32)
            return TrainState(
                step=zero, trainable=trainable, frozen=frozen, opt_state=optimizer.init(trainable), prompt_state={},
                skipped=zero,
            )  # fmt: skip

        abstract = jax.eval_shape(new_state, loaded.model.param_shapes)
        self.shardings = state_shardings(self.layout, abstract, learner.param_axes())
        self.shapes = jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
            abstract,
            self.shardings,
        )
        self._new_state = partitioning.init_sharded(new_state, self.shardings)
        options = {"seed": config.seed, "accumulation_steps": config.accumulation_steps}
        step = make_train_step(learner, optimizer, dropout=loaded.model.config.dropout_rate > 0, **options)
        self.train_step = jit_step(step, self.layout, self.shardings, config.compiler_options)

        def answer(trainable, batch):
            return jnp.argmax(learner.logits(merge_params(trainable, {}), batch), axis=-1)

        self._answer = jax.jit(answer, out_shardings=partitioning.replicated(self.layout))

    def saved(self, state: TrainState, best: Any) -> dict:
        """The part of a run that a checkpoint holds."""
        return {"step": state.step, "trainable": state.trainable, "opt_state": state.opt_state, "best": best}

    def restore(self, checkpoints: Checkpointer) -> tuple[TrainState, Any, int, dict]:
        """(state, best parameters, step, meta): from the newest verified checkpoint, else from the model's source."""
        restored = checkpoints.restore_latest(self.saved(self.shapes, self.shapes.trainable))
        if restored is not None:
            step, saved, meta = restored
            best = saved.pop("best")
            skipped = jax.device_put(jnp.zeros((), jnp.int32), partitioning.replicated(self.layout))
            return TrainState(**saved, frozen={}, prompt_state={}, skipped=skipped), best, step, meta
        model_shardings = self.shardings.trainable["model"]
        state = self._new_state(initialisation.place_params(self.loaded, model_shardings, seed=self.config.seed))
        return state, jax.tree.map(jnp.copy, state.trainable), 0, {"valid": [], "since_best": 0}

    def batches(self, epoch: int, first: int):
        """This process's rows of an epoch's batches from number `first` on: an order for each, from (seed, epoch)."""
        size = self.config.batch_size
        rows = self.layout.process_rows(size)
        order = np.random.default_rng((self.config.seed, epoch)).permutation(len(self.tokens["train"]))
        for number in range(first, self.steps_per_epoch):
            chosen = order[number * size : (number + 1) * size].tolist()
            yield {name: array[rows] for name, array in self._batch("train", chosen, size).items()}

    def predict(self, trainable: Any, split: str) -> list[int]:
        """The class of every text of a split."""
        found, size = {}, self.layout.rounded_up(self.config.eval_batch_size)
        order = sorted(range(len(self.tokens[split])), key=lambda i: -len(self.tokens[split][i]))
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            batch = partitioning.put_batch(self.layout, self._batch(split, chosen, size), whole=True)
            found |= dict(zip(chosen, np.asarray(self._answer(trainable, batch)).tolist(), strict=False))
        return [found[i] for i in range(len(order))]

    def _batch(self, split: str, chosen: Sequence[int], rows: int) -> dict[str, np.ndarray]:
        """Rows that are missing are the last one again, which counts for nothing."""
        numbers = [*chosen, *[chosen[-1]] * (rows - len(chosen))]
        tokens = [self.tokens[split][i] for i in numbers]
        inputs_BS, mask_BS = converters.pad(tokens, converters.round_up(max(map(len, tokens)), LENGTH_MULTIPLE), 0)
        labels_B1 = np.asarray([[self.labels[split][i]] for i in numbers], np.int32)
        return {
            "inputs_BS": inputs_BS,
            "inputs_mask_BS": mask_BS,
            "targets_BT": labels_B1,
            "loss_mask_BT": (np.arange(rows) < len(chosen))[:, None],
            "task_B": np.zeros(rows, np.int32),
        }


def token_ids(loaded: initialisation.LoadedModel, text: str, most: int) -> np.ndarray:
    """The text's ids with what stands around a text of this model; cut before the end token."""
    vocabulary = loaded.vocabulary
    begin = [] if vocabulary.bos_id == vocabulary.eos_id else [vocabulary.bos_id]
    return np.asarray([*begin, *vocabulary.encode(text)[: most - len(begin) - 1], vocabulary.eos_id], np.int32)
