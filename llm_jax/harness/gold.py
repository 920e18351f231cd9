"""The right answers of tasks, as continuations of their questions."""
from collections.abc import Sequence
from typing import Any, NamedTuple

from lm_eval.api.instance import Instance
from lm_eval.api.task import Task

from llm_jax.config.errors import ConfigError, require
from llm_jax.harness.model import arguments
from llm_jax.harness.run import Asking, prepare
from llm_jax.harness.tasks import TaskSource
from llm_jax.harness.text import HarnessText


class Gold(NamedTuple):
  """num_bytes: of the answer, without what parts it from the question."""
  context: str
  continuation: str
  num_bytes: int


def gold_answers(source: TaskSource, asking: Asking, text: HarnessText) -> dict[str, list[Gold]]:
  """By task, the right answer behind every question that has one.

  Raises:
    ConfigError: as `prepare` does, or a task without single right answers.
  """
  found: dict[str, list[Gold]] = {}
  for name, task in prepare(source, asking, text).tasks.items():
    by_question: dict[int, list[Instance]] = {}
    for instance in task.instances:
      by_question.setdefault(instance.doc_id or 0, []).append(instance)
    golds = [_gold(name, task, of_question) for of_question in by_question.values()]
    found[name] = [gold for gold in golds if gold.num_bytes > 0]
  for name, golds in found.items():
    for number, gold in enumerate(golds):
      _check(text, f'{name}, question {number}', gold)
  return found


def _check(text: HarnessText, where: str, gold: Gold) -> None:
  try:
    context, continuation = text.encode_pair(gold.context, gold.continuation)
  except ConfigError as error:
    raise ConfigError(where, error.value, error.hint) from error
  length = len(context) + len(continuation) - 1
  require(length <= text.max_length, where, f'{length} tokens with the right answer',
          f'the model reads {text.max_length}: ask for fewer examples')


def _gold(name: str, task: Task, instances: Sequence[Instance]) -> Gold:
  """instances: what is asked of one question."""
  first: Any = instances[0]  # of which the harness says little
  delimiter = str(task.get_config('target_delimiter') or '')
  match first.request_type:
    case 'loglikelihood' if len(instances) > 1:
      answers: Any = task.doc_to_target(first.doc)
      choices: Any = task.doc_to_choice(first.doc)  # pyright: ignore[reportAttributeAccessIssue]
      place = answers if isinstance(answers, int) else choices.index(answers)
      context, continuation = arguments(instances[place])
    case 'loglikelihood':
      context, continuation = arguments(first)
    case 'generate_until':
      context = arguments(first)[0]
      continuation = delimiter + str(task.doc_to_target(first.doc))
    case kind:
      raise ConfigError('names', name, f'its questions have no right answer ({kind}): leave it out')
  answer = continuation.removeprefix(delimiter)
  return Gold(context, continuation, len(answer.encode()))
