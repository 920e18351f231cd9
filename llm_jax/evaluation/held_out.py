"""Held-out loss of any objective."""
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from llm_jax.config.evaluations import HeldOut
from llm_jax.data.batches import Batch, validation_batches
from llm_jax.data.dataset import Dataset
from llm_jax.evaluation.baselines import bits_per_byte
from llm_jax.evaluation.protocol import Evaluated, Evaluation, EvaluationSetup, Metrics, Moment, Result
from llm_jax.objectives.loss import Loss, means_by_source
from llm_jax.objectives.protocol import Objective
from llm_jax.sharding.rules import batch_sharding

# How the names under which the parameters of an average are compared read in a message.
UNAVERAGED = {'last_checkpoint': 'the last checkpoint alone', 'last_ema': 'its moving average'}


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
  sums: dict[str, float] = {}
  pending = None
  for batch in batches:
    loss = eval_step(params, frozen, batch)
    if pending is not None:
      _add(sums, pending)
    pending = loss
  if pending is None:
    return {'loss': math.nan, 'weight': 0.0}
  _add(sums, pending)
  weight = sums.pop('weight')
  means = {name: value / max(weight, 1.0) for name, value in sums.items()}
  return {**means_by_source(means), 'weight': weight}


def _add(sums: dict[str, float], loss: Loss) -> None:
  new = {'loss': loss.total, 'weight': loss.weight, **loss.metrics}
  for name, value in jax.device_get(new).items():
    sums[name] = sums.get(name, 0.0) + float(value)


def eval_batches(setup: EvaluationSetup, validation: Dataset, heartbeat: Callable[[], None], limit: int | None = None
                 ) -> Iterator[Batch]:
  """Batches of a validation split, as large as a training microbatch; `limit` takes so many, spread over all."""
  for batch in validation_batches(validation, setup.phase.rows, batch_sharding(setup.mesh), limit):
    heartbeat()  # a long evaluation must not look like a process that hangs
    yield batch


class HeldOutEvaluation(Evaluation):
  """The objective's means on the validation split, for text also bits per byte, and scores that need no model."""
  config: HeldOut

  def __init__(self, config: HeldOut, setup: EvaluationSetup):
    super().__init__(config, setup)
    self.eval_step = make_eval_step(setup.objective)

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
    return Result({**metrics, **compared.metrics}, compared.lines, status, compared.headline or objective.headline(metrics))

  def scores(self, params: Any, model: Evaluated, limit: int | None) -> dict[str, float]:
    """The means over `limit` batches, or over all."""
    setup, validation = self.setup, self.setup.validation
    batches = eval_batches(setup, validation, model.heartbeat, limit)
    found = evaluate(self.eval_step, params, model.reference, batches)
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
