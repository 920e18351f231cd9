"""Held-out loss of any objective."""
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax

from llm_jax.objectives.loss import Loss, Objective, means_by_source


def make_eval_step(objective: Objective) -> Callable[[Any, Any, Any], Loss]:
  """The jitted (params, frozen, batch) -> Loss, without dropout and without gradient; compiled once for equal ones."""
  return functools.partial(_eval_step, objective)


@functools.partial(jax.jit, static_argnums=0)
def _eval_step(objective: Objective, params: Any, frozen: Any, batch: Any) -> Loss:
  return objective(params, frozen, batch, None)


def evaluate(eval_step: Callable, params: Any, frozen: Any, batches: Iterable[Any]) -> dict[str, float]:
  """Means over all that counts in `batches`: loss, the objective's metrics, and `weight`, what was counted; `loss/NAME`
  over what counts of one source, where the objective tells them apart and the batches hold any of it.

  Sums are float64 on the host; one batch is computed while the last is read.
  """
  sums, pending = None, None

  def add(loss: Loss):
    nonlocal sums
    new = {'loss': loss.total, 'weight': loss.weight, **loss.metrics}
    new = {name: float(value) for name, value in jax.device_get(new).items()}
    sums = new if sums is None else {name: sums[name] + value for name, value in new.items()}

  for batch in batches:
    loss = eval_step(params, frozen, batch)
    if pending is not None:
      add(pending)
    pending = loss
  if pending is None:
    return {'loss': math.nan, 'weight': 0.0}
  add(pending)
  weight = sums.pop('weight')
  return {**means_by_source({name: value / max(weight, 1.0) for name, value in sums.items()}), 'weight': weight}
