"""One training step: a pure function of (state, frozen, batch), whatever the objective."""
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llm_jax.objectives.loss import Loss, Objective
from llm_jax.optim.optimizers import clip_factor
from llm_jax.sharding.rules import constrain
from llm_jax.train.state import TrainState

Metrics = dict[str, jax.Array]


def make_train_step(objective: Objective, optimizer: optax.GradientTransformation, schedule: Callable, *, seed: int = 0,
                    microbatches: int = 1, clip_norm: float | None = None, ema: float | None = None,
                    ) -> Callable[[TrainState, Any, Any], tuple[TrainState, Metrics]]:
  """The step, to be jitted with the state donated.

  `optimizer` gives updates for a learning rate of 1, scaled here by `schedule(step)`. A step whose loss or gradient is
  not finite leaves parameters and optimizer untouched. Randomness is a function of seed and step alone.
  """

  def train_step(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, Metrics]:
    rng = jax.random.fold_in(jax.random.key(seed), state.step)
    grads, loss = accumulate(objective, state.params, frozen, batch, rng, microbatches)
    weight = jnp.maximum(loss.weight, 1.0)
    norm = optax.tree.norm(grads) / weight
    finite = jnp.isfinite(norm) & jnp.isfinite(loss.total)
    rate = schedule(state.step)

    def update(params, opt_state, average):
      mean = optax.tree.scale(clip_factor(norm, clip_norm) / weight, grads)
      updates, opt_state = optimizer.update(mean, opt_state, params)
      params = jax.tree.map(lambda p, u: p + rate * u, params, updates)
      if hasattr(objective, 'after_step'):
        params = objective.after_step(params, loss.loads)
      return params, opt_state, None if ema is None else optax.incremental_update(params, average, 1.0 - ema)

    trained = update_if(finite, update, state.params, state.opt_state, state.ema)
    new_state = TrainState(state.step + 1, *trained, jnp.where(finite, 0, state.nonfinite + 1))
    metrics = {'loss': loss.total / weight, **{k: v / weight for k, v in loss.metrics.items()}, 'grad_norm': norm,
               'learning_rate': rate, 'weight': loss.weight, 'nonfinite': new_state.nonfinite}
    return new_state, metrics

  return train_step


def update_if(finite: jax.Array, update: Callable, *old: Any) -> tuple[Any, ...]:
  """update(*old) where `finite`, else `old`, in the memory of `old` when that is donated.

  On CPU XLA gives a branch that memory, and keeps new and old beside each other for a select (two more copies of the
  parameters). On GPU and TPU it is the select that takes no memory, and the branch that makes another state.
  """
  if jax.default_backend() == 'cpu':
    return jax.lax.cond(finite, update, lambda *old: old, *old)
  return jax.tree.map(lambda new, old: jnp.where(finite, new, old), update(*old), old)


def accumulate(objective: Objective, params: Any, frozen: Any, batch: Any, rng: jax.Array, microbatches: int,
               ) -> tuple[Any, Loss]:
  """Gradient of the summed total, and the summed loss, over `microbatches` pieces of the batch computed in turn."""

  def one(piece: Any, rng: jax.Array) -> tuple[Any, Loss]:
    def total(params):
      loss = objective(params, frozen, piece, rng)
      return loss.total, loss
    return jax.grad(total, has_aux=True)(params)

  if microbatches == 1:
    return one(batch, rng)

  def split(x):  # piece m takes rows m, m + M, ...: every device keeps a share of every piece
    x = x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:]).swapaxes(0, 1)
    return constrain(x, None, 'batch', *(None,) * (x.ndim - 2))

  def body(sums, inputs):
    return jax.tree.map(jnp.add, sums, one(*inputs)), None

  inputs = jax.tree.map(split, batch), jax.random.split(rng, microbatches)
  shapes = jax.eval_shape(one, *jax.tree.map(lambda x: x[0], inputs))
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  return jax.lax.scan(body, zeros, inputs)[0]
