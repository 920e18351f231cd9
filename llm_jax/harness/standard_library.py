"""Tasks out of the running Python's own library, for which no file of data is needed.

A model that was trained on the library has read most of the functions: the tasks tell checkpoints of one run apart, and
say little about a model that has not.
"""
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from llm_jax.data.sources.standard_library import Function, functions, source_files

CHOICES = 4
EXAMPLES = 64  # of all functions, so many are examples before questions, and are never asked
METRICS = [{'metric': name, 'aggregation': 'mean', 'higher_is_better': True} for name in ('acc', 'acc_norm')]
NAME = re.compile(r'def (\w+)')


class Made(NamedTuple):
  """A task: its definition, as the harness has it, and its rows."""
  definition: Mapping[str, Any]
  questions: Sequence[Mapping[str, Any]]
  examples: Sequence[Mapping[str, Any]]


def bodies() -> Made:
  """Which of four bodies is that of a function, whose signature and documentation are given."""
  chosen = _shuffled()
  rows = [_row(function.question, function.code, [other.code for other in others], function.file)
          for function, others in _with_others(chosen)]
  return _made(rows, target_delimiter='\n')


def names() -> Made:
  """Which of four names a function has, whose documentation and code are given."""
  chosen = [function for function in _shuffled() if NAME.search(function.question)]
  rows = [_row(_without_name(function), _name(function), [_name(other) for other in others], function.file)
          for function, others in _with_others(chosen)]
  distinct = [row for row in rows if len(set(row['choices'])) == CHOICES]
  return _made(distinct, target_delimiter=' ')


MADE: Mapping[str, Callable[[], Made]] = {'stdlib_bodies': bodies, 'stdlib_names': names}


def _shuffled() -> list[Function]:
  found = list(functions(source_files()))
  random.Random(0).shuffle(found)
  return found


def _with_others(chosen: Sequence[Function]) -> list[tuple[Function, list[Function]]]:
  """Each with those that come next, whose code or name are the wrong choices."""
  count = len(chosen)
  return [(function, [chosen[(i + k) % count] for k in range(1, CHOICES)]) for i, function in enumerate(chosen)]


def _row(question: str, right: str, wrong: Sequence[str], file: str) -> dict[str, Any]:
  """The right choice stands anywhere among the others, which the question alone decides."""
  place = random.Random(question).randrange(CHOICES)
  choices = [*wrong]
  choices.insert(place, right)
  return {'question': question, 'choices': choices, 'answer': place, 'file': file}


def _name(function: Function) -> str:
  found = NAME.search(function.question)
  assert found is not None, function.question
  return found[1]


def _without_name(function: Function) -> str:
  name = _name(function)
  text = f'{function.question}\n{function.code}'
  return re.sub(rf'\b{re.escape(name)}\b', '_', text) + '\n# The function is called'


def _made(rows: Sequence[Mapping[str, Any]], target_delimiter: str) -> Made:
  definition = {
    'output_type': 'multiple_choice', 'doc_to_text': '{{question}}', 'doc_to_choice': '{{choices}}',
    'doc_to_target': '{{answer}}', 'target_delimiter': target_delimiter, 'metric_list': METRICS,
    'metadata': {'version': 1.0}}
  return Made(definition, rows[EXAMPLES:], rows[:EXAMPLES])
