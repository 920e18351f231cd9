"""Held-out loss of any objective."""
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np

from llm_jax.config.evaluations import HeldOut
from llm_jax.data.batches import Batch, validation_batches
from llm_jax.data.dataset import Dataset
from llm_jax.evaluation.baselines import bits_per_byte
from llm_jax.evaluation.protocol import Evaluated, Evaluation, EvaluationSetup, Metrics, Moment, Result
from llm_jax.objectives.frozen import Frozen
from llm_jax.objectives.loss import Loss, as_numbers, divided
from llm_jax.objectives.protocol import Objective
from llm_jax.sharding.rules import batch_sharding

Sums = TypeVar('Sums')  # a pytree of arrays

# How the names under which the parameters of an average are compared read in a message.
UNAVERAGED = {'last_checkpoint': 'the last checkpoint alone', 'last_ema': 'its moving average'}


def evaluate(objective: Objective, params: Any, frozen: Frozen, batches: Callable[[], Iterable[Batch]]
             ) -> dict[str, float]:
  """Means over all that counts in `batches()`: loss, the objective's metrics, and `weight`, what was counted. A metric
  that counts something else, such as the rows of one source, is a mean over that, and left out where there is none.

  Where the loss of a row depends on other rows, these are all rows: the batches are read twice.
  """
  statistics = None
  if objective.has_statistics:
    sums = _sum(_statistics(objective, params, frozen, batch) for batch in batches())
    statistics = jax.tree.map(np.float32, sums)
  loss = _sum(_loss(objective, params, frozen, batch, statistics) for batch in batches())
  if loss is None:
    return {'loss': math.nan, 'weight': 0.0}
  weight = np.maximum(loss.weight, 1.0)
  numbers = as_numbers(divided(loss.metrics, weight))
  return {'loss': float(loss.total / weight), **numbers, 'weight': float(loss.weight)}


@functools.partial(jax.jit, static_argnums=0)
def _statistics(objective: Objective, params: Any, frozen: Frozen, batch: Batch) -> Any:
  return objective.statistics(params, frozen, batch, None)


@functools.partial(jax.jit, static_argnums=0)
def _loss(objective: Objective, params: Any, frozen: Frozen, batch: Batch, statistics: Any) -> Loss:
  """Without dropout and without gradient; compiled once for equal objectives."""
  loss = objective(params, frozen, batch, None, statistics)
  return dataclasses.replace(loss, step_sums={})  # of which nothing is learnt here


def _sum(results: Iterable[Sums]) -> Sums | None:
  """The sum of pytrees in float64 on the host; None of none. One is computed while the one before it is read."""
  sums = None
  pending = None
  for result in results:
    if pending is not None:
      sums = _add(sums, pending)
    pending = result
  return sums if pending is None else _add(sums, pending)


def _add(sums: Sums | None, result: Sums) -> Sums:
  read = jax.tree.map(np.float64, jax.device_get(result))
  return read if sums is None else jax.tree.map(np.add, sums, read)


def eval_batches(setup: EvaluationSetup, validation: Dataset, heartbeat: Callable[[], None], limit: int | None = None
                 ) -> Iterator[Batch]:
  """Batches of a validation split, as large as a training microbatch; `limit` takes so many, spread over all."""
  for batch in validation_batches(validation, setup.phase.rows, batch_sharding(setup.mesh), limit):
    heartbeat()  # a long evaluation must not look like a process that hangs
    yield batch


class HeldOutEvaluation(Evaluation):
  """The objective's means on the validation split, for text also bits per byte, and scores that need no model."""
  config: HeldOut

  @property
  def every(self) -> int:
    return self.config.every

  def applies(self) -> bool:
    return self.setup.has_validation

  def run(self, model: Evaluated, start: Metrics) -> Result:
    limit = None if model.moment is Moment.END else self.config.batches * self.setup.phase.microbatches
    metrics = self.scores(model.params, model, limit)
    objective = self.setup.stage.objective
    status = f'held-out at step {model.step:,}: {objective.status(metrics)}'
    if model.moment is not Moment.END:
      return Result(metrics, status=status)
    compared = self.compare_average(metrics, model)
    return Result(
      {**metrics, **compared.metrics}, compared.lines, status, compared.headline or objective.headline(metrics)
    )

  def scores(self, params: Any, model: Evaluated, limit: int | None) -> dict[str, float]:
    """The means over `limit` batches, or over all."""
    setup, validation = self.setup, self.setup.validation
    batches = functools.partial(eval_batches, setup, validation, model.heartbeat, limit)
    found = evaluate(setup.objective, params, model.frozen, batches)
    found |= validation.known_scores
    if validation.is_text:
      found['bits_per_byte'] = bits_per_byte(found['nll'] * validation.num_targets, validation.num_bytes)
    for name, rows in validation.parts.items():
      is_text = rows.store.counts is None
      if is_text and f'loss/{name}' in found:
        nats = found[f'loss/{name}'] * rows.num_targets
        found[f'bits_per_byte/{name}'] = bits_per_byte(nats, rows.store.num_bytes)
    return found

  def compare_average(self, metrics: dict[str, float], model: Evaluated) -> Result:
    """Of a stage that starts from a mean of checkpoints: the same scores of the last of them alone, and of its moving
    average where one was kept, under names that end with `_last_checkpoint` and `_last_ema`."""
    in_bits = 'bits_per_byte' in metrics
    name, unit = ('bits_per_byte', 'bits per byte') if in_bits else ('loss', 'loss')
    compared: dict[str, float] = {}
    steps: list[tuple[str, float]] = []
    for kind, params in model.unaveraged():
      alone = self.scores(params, model, None)
      compared[f'loss_{kind}'] = alone['loss']
      compared[f'{name}_{kind}'] = alone[name]
      steps.append((UNAVERAGED[kind], alone[name]))
    if not steps:
      return Result()
    trained = f' and {self.setup.stage.steps:,} steps' if self.setup.stage.steps else ''
    steps.append((f'the mean of {model.num_averaged}{trained}', metrics[name]))
    values = ' -> '.join(f'{value:.4f}' for _, value in steps)
    words = ' -> '.join(word for word, _ in steps)
    first = steps[0][1]
    short_unit = 'bits/byte' if in_bits else 'loss'
    return Result(compared, (f'held-out {values} {unit} ({words})',),
                  headline=f'{first:.3f} → {metrics[name]:.3f} {short_unit}')
