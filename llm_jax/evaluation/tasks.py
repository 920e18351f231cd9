"""Tasks of lm-evaluation-harness while a model learns."""
import functools
import pathlib

from llm_jax.config.evaluations import GoldBitsPerByte, Tasks
from llm_jax.data.tokenizers.chat_templates import end_of_turn
from llm_jax.evaluation.protocol import Evaluated, Evaluation, EvaluationSetup, Metrics, Moment, Result
from llm_jax.harness.model import HarnessModel, Reader
from llm_jax.harness.run import Asking, Prepared, TaskScore, prepare, run, scores
from llm_jax.harness.tasks import TaskSource
from llm_jax.harness.text import HarnessText
from llm_jax.tracking.display import Curves, Table


class TasksEvaluation(Evaluation):
  """`NAME/TASK/METRIC` for every metric of every task."""
  config: Tasks

  @property
  def every(self) -> int:
    return self.config.every

  @functools.cached_property
  def text(self) -> HarnessText:
    template = self.setup.stage.data.template if self.config.chat else None
    return text_of(self.setup, template)

  @functools.cached_property
  def asking(self) -> Asking:
    return Asking(limit=self.config.limit)

  @functools.cached_property
  def prepared(self) -> Prepared:
    return prepare(source_of(self.config), self.asking, self.text)

  def check(self) -> None:
    """Refuses, before anything compiles, tasks that cannot be had and what cannot be scored."""
    self.prepared  # noqa: B018  # which reads them

  def run(self, model: Evaluated, start: Metrics) -> Result:
    with_template = self.text.template is not None
    harness = HarnessModel(self.text, reader_of(self.setup, model, self.text), self.setup.run.seed)
    found = scores(run(harness, self.prepared, self.asking, with_template))
    metrics = {f'{self.config.name}/{metric_name(score)}': score.value for score in found}
    line = ', '.join(f'{metric_name(score)} {score.value:.4f}' for score in found)
    if model.moment is not Moment.END:
      return Result(metrics, (f'{line}, at step {model.step:,}',))
    return Result(metrics, (line,), headline=headline(found), display=(self._table(found), self._curves(found)))

  def _table(self, found: list[TaskScore]) -> Table:
    rows = []
    for score in found:
      error = '' if score.estimate is None else f'± {score.estimate.error:.4f}'
      metric = metric_name(score).partition('/')[2]
      rows.append((score.task, str(score.num_fewshot), metric, f'{score.value:.4f}', error))
    return Table('Tasks', 'By the definitions of lm-evaluation-harness, with standard errors over questions.',
                 self.setup.stage.name, ('task', 'shots', 'metric', 'value', 'error'), tuple(rows))

  def _curves(self, found: list[TaskScore]) -> Curves:
    lines = tuple((metric_name(score), f'{self.config.name}/{metric_name(score)}') for score in found)
    stage = self.setup.stage.name
    return Curves('Tasks', '', f'{stage}: tasks', stage, 'value', lines)


def metric_name(score: TaskScore) -> str:
  """`TASK/METRIC`, and the filter where the task has several."""
  suffix = '' if score.filter == 'none' else f'_{score.filter}'
  return f'{score.task}/{score.metric}{suffix}'


def headline(found: list[TaskScore]) -> str:
  first = found[0]
  return f'{first.value:.2f} {first.metric} in {first.task}'


# ---------------------------------------------------------------------------------------------- shared
def source_of(config: Tasks | GoldBitsPerByte) -> TaskSource:
  """What a configuration asks."""
  data = {}
  for text in config.data:
    task, _, path = text.partition('=')
    data[task] = pathlib.Path(path)
  return TaskSource(config.names, data, num_fewshot=config.num_fewshot)


def text_of(setup: EvaluationSetup, template: str | None) -> HarnessText:
  """How the stage's model reads texts: as long as its positions are meant for, or as its rows are."""
  length = setup.model.meant_length or setup.stage.seq_len
  return HarnessText(setup.tokenizer, template, True, setup.model.vocab_size, length)


def reader_of(setup: EvaluationSetup, model: Evaluated, text: HarnessText) -> Reader:
  """The model as it is now. Its batches are the stage's, which fit into memory and which the mesh divides."""
  ends = (setup.tokenizer.eot,)
  if text.template is not None:
    ends = end_of_turn(text.template, setup.tokenizer)
  return Reader(setup.model, model.params, setup.execution, ends, setup.phase.rows, heartbeat=model.heartbeat)
