"""Optimizers as frozen configurations that build one optax transformation.

Every transformation here takes the extra argument `rows`: a tree like the trainable parameters whose leaves are
booleans that broadcast against them. A false row keeps its value, both its moments and its step count bit for bit
(continual learning with a prompt pool: rows that the current tasks do not own must not move, and a row first touched
late gets its own bias correction). For ordinary parameters the leaf is the scalar True. The extra argument `finite` is
a boolean scalar; where it is false, nothing of the state changes (the caller keeps the parameters).
"""

import dataclasses
import difflib
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from codegen2_jax.errors import UserError
from codegen2_jax.sharding.partitioning import leaf_name

Schedule = Literal["constant", "linear", "cosine"]
PARTS = ("model/.*", "prompt/.*")  # of the parameters; a file that fits every method gives each its rate


def schedule(
    learning_rate: float,
    shape: Schedule,
    *,
    warmup_steps: int,
    num_steps: int,
    end_fraction: float = 0.0,
    decay_steps: int | None = None,
) -> optax.Schedule:
    """Learning rate per step: linear warm-up, then constant, or linear or cosine decay to a fraction of the peak.

    decay_steps: length of the decay, counted from the end of the warm-up; None: it ends at `num_steps`. Behind it the
    rate stays at `end_fraction * learning_rate`.
    """
    warmup_steps = min(warmup_steps, num_steps)
    decay_steps = max(1, num_steps - warmup_steps if decay_steps is None else decay_steps)
    if shape == "constant":
        after = optax.constant_schedule(learning_rate)
    elif shape == "linear":
        after = optax.linear_schedule(learning_rate, end_fraction * learning_rate, decay_steps)
    elif shape == "cosine":
        after = optax.cosine_decay_schedule(learning_rate, decay_steps, alpha=end_fraction)
    else:
        raise UserError(f"schedule={shape!r} is unknown; choose 'constant', 'linear' or 'cosine'.")
    if warmup_steps == 0:
        return after
    # Warm-up starts at one step's worth, not at 0: the first update of a short run should not be lost.
    warmup = optax.linear_schedule(learning_rate / warmup_steps, learning_rate, max(1, warmup_steps - 1))
    return optax.join_schedules([warmup, after], [warmup_steps])


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise UserError(f"{name}={value} is out of range; it must be above 0.")


def _check_warmup(warmup_steps: int) -> None:
    if warmup_steps < 0:
        raise UserError(f"warmup_steps={warmup_steps} is out of range; it must be at least 0, and 0 is no warm-up.")


class AdamRowsState(NamedTuple):
    count: Any  # like `rows`: one step count per row
    mu: Any
    nu: Any


def scale_by_adam_rows(b1: float, b2: float, eps: float, rows: Any) -> optax.GradientTransformationExtraArgs:
    """Adam (Kingma & Ba 2015) whose moments, counts and bias corrections live per row.

    rows: a tree like the parameters; only the shapes of its leaves are used here, for the step counts.
    """
    row_shapes = jax.tree.map(lambda row: row.shape, rows)

    def init(params):
        is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
        return AdamRowsState(
            count=jax.tree.map(lambda shape: jnp.zeros(shape, jnp.int32), row_shapes, is_leaf=is_shape),
            mu=jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params),
            nu=jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params),
        )

    def update(grads, state, params=None, *, rows, finite=True, **_):
        rows = jax.tree.map(lambda row: row & finite, rows)

        def select(row, new, old):
            return jnp.where(row, new, old)

        count = jax.tree.map(lambda c, row: c + row.astype(jnp.int32), state.count, rows)
        mu = jax.tree.map(lambda row, m, g: select(row, b1 * m + (1 - b1) * g, m), rows, state.mu, grads)
        nu = jax.tree.map(lambda row, v, g: select(row, b2 * v + (1 - b2) * g * g, v), rows, state.nu, grads)
        # XLA for CPUs would compute the direction from the old moments and keep copies of them, a gigabyte at 125 M
        # parameters; behind a barrier it reads the new ones, which lie where the old ones lay. Others fuse all of it.
        mu, nu = jax.lax.platform_dependent((mu, nu), cpu=jax.lax.optimization_barrier, default=lambda moments: moments)

        def direction(row, c, m, v):
            steps = jnp.maximum(c, 1).astype(jnp.float32)
            m_hat = m / (1 - b1**steps)
            v_hat = v / (1 - b2**steps)
            return jnp.where(row, m_hat / (jnp.sqrt(v_hat) + eps), 0.0)

        return jax.tree.map(direction, rows, count, mu, nu), AdamRowsState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformationExtraArgs(init, update)


def _clip_by_global_norm(max_norm: float | None) -> optax.GradientTransformationExtraArgs:
    if max_norm is None:
        return optax.with_extra_args_support(optax.identity())
    _check_positive(clip_norm=max_norm)
    return optax.with_extra_args_support(optax.clip_by_global_norm(max_norm))


def _scale_by_parameter_rms(axes: Any, minimum: float = 1e-3) -> optax.GradientTransformationExtraArgs:
    """Multiplies a matrix's step by the root mean square of its values, layer by layer on stacked leaves.

    T5's shared embedding has unit variance while its projections are small; a step that ignores the size of what it
    moves crawls (Adafactor, Shazeer & Stern 2018, section 8).
    """

    def update(updates, state, params=None, **_):
        def scaled(update, p, names):
            reduced = tuple(i for i, name in enumerate(names) if name != "layers")
            rms = jnp.sqrt(jnp.mean(jnp.square(p.astype(jnp.float32)), axis=reduced, keepdims=True))
            return update * jnp.maximum(rms, minimum)

        return jax.tree.map(scaled, updates, params, axes), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _decay(weight_decay: float, axes: Any) -> optax.GradientTransformationExtraArgs:
    """Adds `weight_decay * parameter` to the active rows of matrices and embeddings, never to norm scales."""

    def update(updates, state, params=None, *, rows, **_):
        def decayed(update, p, names, row):
            is_vector = len([name for name in names if name != "layers"]) < 2
            return update if is_vector or not weight_decay else update + jnp.where(row, weight_decay * p, 0.0)

        return jax.tree.map(decayed, updates, params, axes, rows), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


class _RateState(NamedTuple):
    count: jax.Array


def _scale_by_rates(rates: tuple[tuple[str, optax.Schedule], ...]) -> optax.GradientTransformationExtraArgs:
    """Multiplies by minus the learning rate of the first rule whose pattern matches the leaf's name.

    `advance=False` takes a step at the present rate and leaves the schedule where it stands.
    """

    def update(updates, state, params=None, *, advance=True, finite=True, **_):
        values = [(pattern, rate(state.count)) for pattern, rate in rates]

        def scaled(path, update):
            name = leaf_name(path)
            for pattern, rate in values:
                if re.fullmatch(pattern, name):
                    return -rate * update
            raise UserError(f"No learning rate for {name} in {[p for p, _ in rates]}; add a pattern, or '.*' last.")

        return jax.tree_util.tree_map_with_path(scaled, updates), _RateState(count=state.count + (finite & advance))

    return optax.GradientTransformationExtraArgs(lambda params: _RateState(count=jnp.zeros((), jnp.int32)), update)


def _names(axes: Any) -> list[str]:
    """The names of the parameters in a tree of their logical axes."""
    leaves = jax.tree_util.tree_leaves_with_path(axes, is_leaf=lambda names: isinstance(names, tuple))
    return [leaf_name(path) for path, _ in leaves]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW with decoupled weight decay, per-row state, and optionally steps scaled by each matrix's RMS.

    Attributes:
      learning_rate: peak rate of every leaf that no rule of `rates` names.
      rates: ordered (pattern over leaf names such as "prompt/keys", peak rate); the first full match wins. A pattern
        has to match a leaf that trains, but for "model/.*" and "prompt/.*": a method trains either or both.
      schedule: "constant", "linear" or "cosine" after `warmup_steps` steps of linear warm-up.
      end_fraction: the rate at the end of a decay, as a fraction of the peak.
      decay_steps: length of the decay from the end of the warm-up, None for all steps that are left.
      clip_norm: global-norm clipping over the active rows, None for none.
      scale_by_rms: multiply each matrix's step by its root mean square (the rate is then relative).
    """

    learning_rate: float
    rates: tuple[tuple[str, float], ...] = ()
    schedule: Schedule = "linear"
    warmup_steps: int = 0
    end_fraction: float = 0.0
    decay_steps: int | None = None
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = None
    scale_by_rms: bool = False

    def __post_init__(self):
        _check_positive(learning_rate=self.learning_rate, eps=self.eps)
        for pattern, rate in self.rates:
            _check_positive(**{f"rate of {pattern!r}": rate})
        for name in ("b1", "b2"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise UserError(f"{name}={value} is out of range; it must be at least 0 and below 1.")
        if self.weight_decay < 0:
            raise UserError(f"weight_decay={self.weight_decay} is out of range; it must be at least 0.")
        _check_warmup(self.warmup_steps)
        if not 0 <= self.end_fraction <= 1:
            raise UserError(f"end_fraction={self.end_fraction} is out of range; it must lie in [0, 1].")
        if self.decay_steps is not None and self.decay_steps < 1:
            raise UserError(f"decay_steps={self.decay_steps} is out of range; it must be at least 1, or None.")

    def narrowed(self, names: Sequence[str], all_names: Sequence[str]) -> "AdamW":
        """The same optimizer for the parameters `names` alone, of all those that `rates` may speak of."""
        self._check_rates(all_names)
        rates = [rule for rule in self.rates if any(re.fullmatch(rule[0], name) for name in names)]
        return dataclasses.replace(self, rates=tuple(rates))

    def _check_rates(self, names: Sequence[str]) -> None:
        for pattern, _ in self.rates:
            if pattern not in PARTS and not any(re.fullmatch(pattern, name) for name in names):
                nearest = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
                raise UserError(
                    f"rates: {pattern!r} matches no parameter that trains; the nearest is {', '.join(nearest)!r}. A "
                    "pattern has to match a whole name."
                )

    def transformation(self, num_steps: int, axes: Any, rows: Any) -> optax.GradientTransformationExtraArgs:
        """The optax transformation for `num_steps` steps.

        axes: a tree like the trainable parameters of logical axis names. rows: the tree of row masks (shapes only
        matter) that `update(..., rows=...)` will be given. UserError where a pattern of `rates` matches no parameter.
        """
        self._check_rates(_names(axes))
        rates = (*self.rates, (".*", self.learning_rate))
        course = {
            "warmup_steps": self.warmup_steps,
            "num_steps": num_steps,
            "end_fraction": self.end_fraction,
            "decay_steps": self.decay_steps,
        }
        return optax.chain(
            _clip_by_global_norm(self.clip_norm),
            scale_by_adam_rows(self.b1, self.b2, self.eps, rows),
            _decay(self.weight_decay, axes),
            *([_scale_by_parameter_rms(axes)] if self.scale_by_rms else []),
            _scale_by_rates(
                tuple(
                    (pattern, schedule(rate, self.schedule, **course)) for pattern, rate in rates
                )
            ),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor:
    """Adafactor (Shazeer & Stern 2018) applied layer by layer to stacked leaves.

    optax's version computes scale and clipping over a whole leaf; on parameters stacked over layers that mixes the
    layers, so each stacked leaf is mapped over its first axis here. It keeps no row state: it refuses a prompt pool.
    """

    learning_rate: float
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    decay_rate: float = 0.8
    clipping_threshold: float = 1.0
    weight_decay: float = 0.0

    def __post_init__(self):
        _check_positive(learning_rate=self.learning_rate, clipping_threshold=self.clipping_threshold)
        _check_warmup(self.warmup_steps)

    def transformation(self, num_steps: int, axes: Any, rows: Any) -> optax.GradientTransformationExtraArgs:
        if any(row.ndim for row in jax.tree.leaves(rows)):
            raise UserError("optimizer=Adafactor keeps no state per prompt, which a prompt pool needs; use AdamW.")
        rate = schedule(self.learning_rate, self.schedule, warmup_steps=self.warmup_steps, num_steps=num_steps)
        single = optax.adafactor(
            rate,
            decay_rate=self.decay_rate,
            clipping_threshold=self.clipping_threshold,
            weight_decay_rate=self.weight_decay or None,
        )
        is_axes = lambda names: isinstance(names, tuple)  # noqa: E731
        leaf_axes, _ = jax.tree.flatten(axes, is_leaf=is_axes)

        def init(params):
            leaves = jax.tree.leaves(params)
            return tuple(
                jax.vmap(single.init)(p) if "layers" in names else single.init(p)
                for p, names in zip(leaves, leaf_axes, strict=True)
            )

        def update(grads, state, params=None, *, advance=True, finite=True, **_):
            if not advance and (self.schedule != "constant" or self.warmup_steps):
                raise UserError("optimizer=Adafactor cannot hold its schedule still between epochs; use AdamW.")
            leaves, tree = jax.tree.flatten(grads)
            new = [
                jax.vmap(single.update)(g, s, p) if "layers" in names else single.update(g, s, p)
                for g, s, p, names in zip(leaves, state, jax.tree.leaves(params), leaf_axes, strict=True)
            ]
            kept = jax.tree.map(lambda s, old: jnp.where(finite, s, old), tuple(s for _, s in new), tuple(state))
            return tree.unflatten([u for u, _ in new]), kept

        return optax.GradientTransformationExtraArgs(init, update)
