"""One training step: a pure function of (state, frozen, batch), whatever the objective."""
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from llm_jax.config.spikes import SkipSpikes
from llm_jax.modules.pipeline import stages_here
from llm_jax.objectives.frozen import Frozen
from llm_jax.objectives.loss import Loss, Metrics, added, added_over, divided
from llm_jax.objectives.protocol import Objective
from llm_jax.optim.optimizers import clip_factor
from llm_jax.optim.rounding import rounded_like, widened
from llm_jax.sharding.rules import axis_sizes, constrain, replica_axes
from llm_jax.train.spikes import limits, observe
from llm_jax.train.state import TrainState

Sums = TypeVar('Sums')  # a pytree of arrays
ROUNDING = 0x726f756e  # sets the random bits of rounding apart from those of dropout


def make_train_step(objective: Objective, optimizer: optax.GradientTransformation, schedule: Callable, *, seed: int = 0,
                    microbatches: int = 1, clip_norm: float | None = None, ema: float | None = None,
                    skip_spikes: SkipSpikes | None = None
                    ) -> Callable[[TrainState, Frozen, Any], tuple[TrainState, Metrics]]:
  """The step, to be jitted with the state donated.

  `optimizer` gives updates for a learning rate of 1, scaled here by `schedule(step)`. A step whose loss or gradient is
  not finite, or far above the recent ones (see `spikes.py`), leaves parameters and optimizer untouched. Parameters in
  bfloat16 are updated in float32 and rounded stochastically. Randomness is a function of seed and step alone.
  """

  def train_step(state: TrainState, frozen: Frozen, batch: Any) -> tuple[TrainState, Metrics]:
    rng = jax.random.fold_in(jax.random.key(seed), state.step)
    grads, loss = accumulate(objective, state.params, frozen, batch, rng, microbatches)
    weight = jnp.maximum(loss.weight, 1.0)
    norm = optax.tree.norm(widened(grads)) / weight
    is_finite = jnp.isfinite(norm) & jnp.isfinite(loss.total)
    observed = jnp.stack([loss.total / weight, norm]).astype(jnp.float32)
    limit = jnp.full(2, jnp.inf) if skip_spikes is None else limits(state.recent, skip_spikes)
    is_spike = is_finite & (observed > limit).any()
    is_taken = is_finite & ~is_spike
    rate = schedule(state.step)

    def update(params, opt_state, average):
      mean = optax.tree.scale(clip_factor(norm, clip_norm) / weight, grads)
      exact = widened(params)
      updates, opt_state = optimizer.update(mean, opt_state, exact)
      exact = jax.tree.map(lambda p, u: p + rate * u, exact, updates)
      params = rounded_like(params, exact, jax.random.fold_in(rng, ROUNDING))
      params = objective.after_step(params, loss.step_sums)
      average = None if ema is None else optax.incremental_update(widened(params), average, 1.0 - ema)
      return params, opt_state, average

    params, opt_state, average = update_if(is_taken, update, state.params, state.opt_state, state.ema)
    skipped = jnp.where(is_taken, 0, state.skipped + 1)
    recent = state.recent
    if skip_spikes is not None:
      seen = observe(recent, observed, skip_spikes)
      recent = jax.tree.map(lambda new, old: jnp.where(is_taken, new, old), seen, recent)
    metrics = {
      'loss': loss.total / weight,
      **divided(loss.metrics, weight),
      'grad_norm': norm,
      'learning_rate': rate,
      'weight': loss.weight,
      'skipped': skipped,
      'is_spike': is_spike,
      'loss_limit': limit[0],
      'grad_norm_limit': limit[1],
    }
    return TrainState(state.step + 1, params, opt_state, average, skipped, recent), metrics

  return train_step


def update_if(is_taken: jax.Array, update: Callable, *old: Any) -> tuple[Any, ...]:
  """update(*old) where `is_taken`, else `old`, in the memory of `old` when that is donated.

  On CPU XLA gives a branch that memory, and keeps new and old beside each other for a select (two more copies of the
  parameters). On GPU and TPU it is the select that takes no memory, and the branch that makes another state.
  """
  if jax.default_backend() == 'cpu':
    return jax.lax.cond(is_taken, update, lambda *old: old, *old)
  return jax.tree.map(lambda new, old: jnp.where(is_taken, new, old), update(*old), old)


def accumulate(objective: Objective, params: Any, frozen: Frozen, batch: Any, rng: jax.Array, microbatches: int,
               ) -> tuple[Any, Loss]:
  """Gradient of the summed total, and the summed loss, over `microbatches` pieces of the batch computed in turn.

  Exact whatever the number: where the loss of a row depends on other rows, it gets the statistics of all pieces.
  """
  def statistics_of(fixed: Any, piece: Any, rng: jax.Array) -> Any:
    params, frozen = fixed
    return objective.statistics(params, frozen, piece, rng)

  def gradient(fixed: Any, piece: Any, rng: jax.Array) -> tuple[Any, Loss]:
    params, frozen, statistics = fixed

    def total(params):
      loss = objective(params, frozen, piece, rng, statistics)
      return loss.total, loss
    return jax.grad(total, has_aux=True)(params)

  # The pieces of a pipeline are microbatches too, of which each would reduce its gradients.
  apart = axes_apart(objective, batch, microbatches) if microbatches > 1 or stages_here() > 1 else ()
  if microbatches == 1 and not apart:
    return gradient((params, frozen, None), batch, rng)  # the objective computes statistics of a whole batch by itself
  statistics = None
  if objective.has_statistics:
    statistics = sum_over_microbatches(statistics_of, (params, frozen), batch, rng, microbatches, apart)
  return sum_over_microbatches(gradient, (params, frozen, statistics), batch, rng, microbatches, apart)


def axes_apart(objective: Objective, batch: Any, microbatches: int) -> tuple[str, ...]:
  """The mesh axes whose devices sum over their own microbatches first: those that hold the same parameters."""
  sizes = axis_sizes()
  axes = replica_axes(sizes)
  rows = len(jax.tree.leaves(batch)[0]) // microbatches
  is_whole = rows % math.prod(sizes[axis] for axis in axes) == 0
  return axes if axes and is_whole and not objective.depends_on_microbatches else ()


def sum_over_microbatches(function: Callable[[Any, Any, jax.Array], Sums], fixed: Any, batch: Any, rng: jax.Array,
                          microbatches: int, apart: tuple[str, ...] = ()) -> Sums:
  """The sum of function(fixed, piece, rng) over pieces of the batch, one after the other.

  apart: mesh axes that split the batch. Their devices sum apart, each over its own rows, and the sums are added up
    once at the end. Otherwise each piece would send all of its gradients along these axes.
  """
  def split(x):  # piece m takes rows m, m + M, ...: every device keeps a share of every piece
    x = x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:]).swapaxes(0, 1)
    return constrain(x, None, 'batch', *(None,) * (x.ndim - 2))

  def summed(fixed, batch, rng):
    def add(sums, inputs):
      return added(sums, function(fixed, *inputs)), None

    inputs = jax.tree.map(split, batch), jax.random.split(rng, microbatches)
    first = jax.tree.map(lambda x: x[0], inputs)
    shapes = jax.eval_shape(function, fixed, *first)
    zeros = widened(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))  # a sum in bfloat16 stops growing
    sums, _ = jax.lax.scan(add, zeros, inputs)
    return added_over(sums, apart)

  if not apart:
    return summed(fixed, batch, rng)
  whole = PartitionSpec()
  return jax.shard_map(summed, in_specs=(whole, PartitionSpec(apart), whole), out_specs=whole, axis_names=set(apart),
                       check_vma=False)(fixed, batch, rng)
