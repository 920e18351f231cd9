"""Scores answers: what the rewards of `llm_jax/config/rewards.py` compute."""
import concurrent.futures
import functools
import importlib.util
import math
import numbers
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llm_jax.config.code_rewards import (
  ArgumentsUsed,
  LengthNear,
  NamesDefined,
  PromptWords,
  PythonBlock,
  UniqueToPrompt,
)
from llm_jax.config.errors import require
from llm_jax.config.rewards import (
  Contains,
  Exact,
  Function,
  Length,
  PythonParses,
  PythonPasses,
  Regex,
  WithModel,
  WithoutModel,
)
from llm_jax.config.rollout import Rollout
from llm_jax.config.samples import Samples
from llm_jax.data.sources import standard_library
from llm_jax.rollout.code_rewards import code_scorer
from llm_jax.rollout.sampling import Answer
from llm_jax.runtime import activity, processes
from llm_jax.runtime.errors import RewardError, one_line
from llm_jax.runtime.sandbox import End, Limits, run_program

Scorer = Callable[[Sequence[Answer]], Sequence[float]]
ModelScorer = Callable[[str, Sequence[Answer]], np.ndarray]  # (name of a reward, answers) -> scores, by every process
FENCED = re.compile(r'^```(?:python|py)?[ \t]*\n(.*?)^```', re.DOTALL | re.MULTILINE)
SHOWN = 60  # characters of a prompt in an error


class Rewards:
  """The rewards of a stage.   answering: how it samples and scores answers.

  Raises:
    ConfigError: a user's file or function is not there.
  """

  def __init__(self, answering: Rollout | Samples):
    place = 'rollout' if isinstance(answering, Rollout) else 'samples'
    self.names = answering.names
    self.weights = np.array([reward.weight for reward in answering.rewards])
    self.models = tuple(answering.reward_models)
    self.scorers = {name: scorer(reward, f'{place}.rewards[{i}]')
                    for i, (name, reward) in enumerate(zip(self.names, answering.rewards, strict=True))
                    if not isinstance(reward, WithModel)}

  def score(self, answers: Sequence[Answer], by_model: ModelScorer | None = None) -> np.ndarray:
    """The rewards of each answer, not weighted, float64 [rewards, answers]. Process 0 asks functions, and all get the
    result; models are asked by all.

    by_model: asks them; needed where a reward is a model's score.

    Raises:
      RewardError: a function of the user's raises or gives what is no number; names it and the row.
    """
    found: dict[str, Any] = {}
    for name in self.models:
      assert by_model is not None
      activity.beat()
      found[name] = by_model(name, answers).tolist()

    def ask() -> list[list[float]]:
      for name, score in self.scorers.items():
        activity.beat()
        found[name] = call(name, score, answers)
      return [checked(name, found[name], answers) for name in self.names]

    return np.array(processes.on_first(ask)).reshape(len(self.names), len(answers))

  def weighted(self, scores: np.ndarray) -> np.ndarray:
    """The reward of each answer, float64 [answers]."""
    return self.weights @ scores


def call(name: str, score: Scorer, answers: Sequence[Answer]) -> Any:
  try:
    return score(answers)
  except Exception as error:  # whatever a function of the user's raises
    raise RewardError(f'reward {name} raised {type(error).__name__}: {one_line(error)}') from error


def checked(name: str, found: Any, answers: Sequence[Answer]) -> list[float]:
  """The scores as numbers, one for each answer."""
  found = list(found) if isinstance(found, Sequence | np.ndarray) else found
  if not isinstance(found, list) or len(found) != len(answers):
    given = f'{len(found)} numbers' if isinstance(found, list) else f'a {type(found).__name__}'
    raise RewardError(f'reward {name} gave {given} for {len(answers)} answers: return a list with a number for each')
  for row, (value, answer) in enumerate(zip(found, answers, strict=True)):
    is_number = isinstance(value, numbers.Real | np.number) and math.isfinite(float(value))
    if not is_number:
      raise RewardError(f'reward {name} gave {value!r:.40} for row {row}, the answer {answer.text[:SHOWN]!r} to '
                        f'{answer.prompt.text[:SHOWN]!r}: return a finite number')
  return [float(value) for value in found]


# ---------------------------------------------------------------------------------------------- each kind
def scorer(reward: WithoutModel, path: str) -> Scorer:
  """What computes a reward without a model.   path: of the field, for errors."""
  match reward:
    case Exact(column):
      return lambda answers: [is_exact(answer, column) for answer in answers]
    case Contains(column):
      return lambda answers: [str(column_of(answer, column)).strip() in answer.text for answer in answers]
    case Regex(pattern):
      expression = re.compile(pattern)
      return lambda answers: [expression.search(answer.text) is not None for answer in answers]
    case PythonParses():
      return lambda answers: [parses(answer) for answer in answers]
    case PythonPasses():
      return functools.partial(passes, reward)
    case Length(longest, margin):
      return lambda answers: [-min(max(len(answer.ids) - longest + margin, 0) / margin, 1.0) for answer in answers]
    case Function():
      return of_function(load_function(reward.path, path))
    case PythonBlock() | NamesDefined() | ArgumentsUsed() | LengthNear() | PromptWords() | UniqueToPrompt():
      return code_scorer(reward)


def column_of(answer: Answer, column: str) -> Any:
  """What the row of the answer's prompt has. Raises KeyError naming the row where that is nothing."""
  if column not in answer.prompt.columns:
    raise KeyError(f'the row of the prompt {answer.prompt.text[:SHOWN]!r} has no {column!r}, only '
                   f'{sorted(answer.prompt.columns)}')
  return answer.prompt.columns[column]


def is_exact(answer: Answer, column: str) -> bool:
  expected = str(column_of(answer, column))
  return answer.ended and answer.text.strip() == expected.strip()


def parses(answer: Answer) -> bool:
  fenced = standard_library.code_in(answer.text)
  return answer.ended and standard_library.parses(answer.text if fenced is None else fenced)


def code_of(answer: Answer) -> str:
  """The last fenced block of an answer that has one, else all of it."""
  blocks = FENCED.findall(answer.text)
  return blocks[-1] if blocks else answer.text


def passes(reward: PythonPasses, answers: Sequence[Answer]) -> list[float]:
  """Each program is run once, several at a time, however many answers are equal."""
  programs: list[str | None] = []
  for answer in answers:
    tests = column_of(answer, reward.tests)
    tests = '\n'.join(tests) if isinstance(tests, list) else tests
    if not isinstance(tests, str):
      raise TypeError(f'the row of the prompt {answer.prompt.text[:SHOWN]!r} has {reward.tests}={tests!r:.40}: give a '
                      'program, or a list of programs')
    programs.append(f'{code_of(answer)}\n{tests}\n' if answer.ended else None)
  limits = Limits(reward.seconds, reward.memory_mib * 2**20)
  distinct = [program for program in dict.fromkeys(programs) if program is not None]
  passed: dict[str | None, bool] = {None: False}
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    outcomes = pool.map(lambda program: run_program(program, limits), distinct)
    for program, outcome in zip(distinct, outcomes, strict=True):
      activity.beat()
      passed[program] = outcome.end is End.PASSED
  return [float(passed[program]) for program in programs]


def of_function(function: Callable[..., Sequence[float]]) -> Scorer:
  """A user's function, asked for all answers at once. Rows without a column have None there."""
  def score(answers: Sequence[Answer]) -> Sequence[float]:
    names = sorted({name for answer in answers for name in answer.prompt.columns})
    columns = {name: [answer.prompt.columns.get(name) for answer in answers] for name in names}
    prompts = [answer.prompt.text for answer in answers]
    return function(prompts, [answer.text for answer in answers], **columns)

  return score


def load_function(path: str, field: str) -> Callable[..., Sequence[float]]:
  """The function that 'FILE.py:name' names."""
  file, _, name = path.rpartition(':')
  require(os.path.isfile(file), f'{field}.path', path, 'no such file')
  spec = importlib.util.spec_from_file_location(f'rewards_{abs(hash(os.path.abspath(file)))}', file)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    problem = ''
  except Exception as error:  # whatever a user's file raises
    problem = f'{type(error).__name__}: {one_line(error)}'
  require(not problem, f'{field}.path', path, f'cannot be imported: {problem}')
  function = getattr(module, name, None)
  defined = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith('_'))
  require(callable(function), f'{field}.path', path, f'{file} has no function of that name, only {defined}')
  assert function is not None
  return function
