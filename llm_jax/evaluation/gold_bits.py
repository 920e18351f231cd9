"""How likely a model finds the right answers of tasks."""
import functools
import math
from collections.abc import Sequence

import numpy as np

from llm_jax.config.errors import require
from llm_jax.config.evaluations import GoldBitsPerByte
from llm_jax.decode.score import score
from llm_jax.evaluation.protocol import Evaluated, Evaluation, Metrics, Moment, Result
from llm_jax.evaluation.tasks import reader_of, source_of, text_of
from llm_jax.harness.gold import Gold, gold_answers
from llm_jax.harness.run import Asking
from llm_jax.harness.text import HarnessText
from llm_jax.tracking.display import Curves, Table


class GoldBitsPerByteEvaluation(Evaluation):
  """`NAME/TASK`, the mean over questions of -log2 p(right answer | question) / bytes of the answer."""
  config: GoldBitsPerByte

  @property
  def every(self) -> int:
    return self.config.every

  @functools.cached_property
  def text(self) -> HarnessText:
    return text_of(self.setup, None)

  @functools.cached_property
  def golds(self) -> dict[str, list[Gold]]:
    """By task, the right answer of every question."""
    return gold_answers(source_of(self.config), Asking(limit=self.config.limit), self.text)

  def check(self) -> None:
    """Refuses, before anything compiles, tasks that cannot be had, and questions that have no right answer."""
    for task, golds in self.golds.items():
      require(len(golds) > 0, 'names', task, 'none of its questions has a right answer that can be scored')

  def run(self, model: Evaluated, start: Metrics) -> Result:
    name = self.config.name
    found = {task: self._bits(golds, model) for task, golds in self.golds.items()}
    metrics = {f'{name}/{task}': bits for task, bits in found.items()}
    line = 'bits per byte of right answers: ' + ', '.join(f'{task} {bits:.4f}' for task, bits in found.items())
    if model.moment is not Moment.END:
      return Result(metrics, (f'{line}, at step {model.step:,}',))
    stage = self.setup.stage.name
    rows = tuple((task, f'{len(self.golds[task]):,}', f'{bits:.4f}') for task, bits in found.items())
    table = Table('Right answers', 'Bits per byte of the right answer behind its question: less is better.', stage,
                  ('task', 'questions', 'bits per byte'), rows)
    curves = Curves('Right answers', '', f'{stage}: right answers', stage, 'bits per byte',
                    tuple((task, f'{name}/{task}') for task in found))
    return Result(metrics, (line,), display=(table, curves))

  def _bits(self, golds: Sequence[Gold], model: Evaluated) -> float:
    reader = reader_of(self.setup, model, self.text)
    pairs = [self.text.encode_pair(gold.context, gold.continuation) for gold in golds]
    scored = score(reader.config, reader.params, [context for context, _ in pairs], [behind for _, behind in pairs],
                   execution=reader.execution, batch_size=reader.batch_size, heartbeat=reader.heartbeat)
    bits = [-one.total / math.log(2) / gold.num_bytes for one, gold in zip(scored, golds, strict=True)]
    return float(np.mean(bits))
