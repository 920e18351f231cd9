"""Multiple-choice questions, scored by the log-likelihood of each choice behind its question."""
import codecs
import dataclasses
import functools
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from llm_jax.batch import LanguageModelBatch
from llm_jax.config.errors import ConfigError, require
from llm_jax.config.evaluations import MultipleChoice
from llm_jax.data.sources import formats
from llm_jax.data.tokenizers.base import Tokenizer, check_ids, opened
from llm_jax.decode.request import fetch
from llm_jax.evaluation.protocol import Evaluated, Evaluation, EvaluationSetup, Metrics, Moment, Result
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.log_probs import sequence_log_probs
from llm_jax.sharding.rules import batch_sharding
from llm_jax.tracking.display import Table

LENGTH_STEP = 64  # rows are as long as the longest, rounded up to a multiple of this


@dataclasses.dataclass(frozen=True)
class Question:
  """text: what the choices stand behind.   answer: the place of the right choice.   where: file and line."""
  text: str
  choices: tuple[str, ...]
  answer: int
  where: str


@dataclasses.dataclass(frozen=True)
class Row:
  """The ids of a question and one of its choices; those of the choice begin at `start`."""
  ids: list[int]
  start: int


class MultipleChoiceEvaluation(Evaluation):
  """`NAME/accuracy`, the share of questions whose right choice has the largest log-likelihood, and
  `NAME/accuracy_per_byte`, where the log-likelihood is divided by the choice's bytes (`acc` and `acc_norm` of
  lm-evaluation-harness)."""
  config: MultipleChoice

  def __init__(self, config: MultipleChoice, setup: EvaluationSetup):
    super().__init__(config, setup)
    self.model = Transformer(setup.model, setup.execution)

  @property
  def every(self) -> int:
    return self.config.every

  @functools.cached_property
  def questions(self) -> list[Question]:
    return read_questions(pathlib.Path(self.config.path), self.config.limit)

  @functools.cached_property
  def rows(self) -> list[Row]:
    """One for every choice of every question, in order."""
    rows = []
    for question in self.questions:
      for choice in question.choices:
        rows.append(encode_choice(question, self.config.delimiter + choice, self.setup.tokenizer))
    return rows

  def check(self) -> None:
    """Refuses, before anything compiles, a file that cannot be read and a choice that cannot be scored."""
    limit = self.setup.model.max_length or math.inf
    numbers = [question.where for question in self.questions for _ in question.choices]
    for row, where in zip(self.rows, numbers, strict=True):
      check_ids(np.array(row.ids), self.setup.tokenizer, self.setup.model.vocab_size)
      length = len(row.ids) - 1
      require(length <= limit, 'path', where,
              f'the question and a choice take {length} tokens, and the model has {limit} positions: shorten it')

  def run(self, model: Evaluated, start: Metrics) -> Result:
    scores = iter(self.log_likelihoods(model))
    is_right: list[bool] = []
    is_right_per_byte: list[bool] = []
    chances: list[float] = []
    for question in self.questions:
      found = np.array([next(scores) for _ in question.choices])
      sizes = np.array([len(choice.encode()) for choice in question.choices])
      is_right.append(int(found.argmax()) == question.answer)
      is_right_per_byte.append(int((found / sizes).argmax()) == question.answer)
      chances.append(1 / len(question.choices))
    return self._result(float(np.mean(is_right)), float(np.mean(is_right_per_byte)), float(np.mean(chances)), model)

  def log_likelihoods(self, model: Evaluated) -> list[float]:
    """log p(choice | question) in nats for every row, the sum over the choice's tokens."""
    found: list[float] = []
    for batch, count in self._batches():
      model.heartbeat()
      scores = fetch(_scores(self.model, model.params, batch))
      found += scores[:count].tolist()
    return found

  def _result(self, accuracy: float, per_byte: float, chance: float, model: Evaluated) -> Result:
    name, count = self.config.name, len(self.questions)
    metrics = {f'{name}/accuracy': accuracy, f'{name}/accuracy_per_byte': per_byte}
    line = f'{name}: {accuracy:.1%} of {count:,} questions right, {per_byte:.1%} by log-likelihood per byte'
    if model.moment is not Moment.END:
      return Result(metrics, (f'{line}, at step {model.step:,}',))
    row = (name, f'{count:,}', f'{accuracy:.1%}', f'{per_byte:.1%}', f'{chance:.1%}')
    table = Table('Multiple choice', 'The likeliest choice behind the question is the answer.', self.setup.stage.name,
                  ('task', 'questions', 'accuracy', 'per byte', 'by chance'), (row,))
    return Result(metrics, (f'{line} ({chance:.1%} by chance)',), headline=f'{accuracy:.0%} right in {name}',
                  display=(table,))

  def _batches(self) -> Iterator[tuple[LanguageModelBatch, int]]:
    """Batches of one shape and how many of their rows count; the last one is filled up with its own rows."""
    size = self.setup.phase.rows
    parts = 2 * self.setup.mesh.shape['context']  # what a device holds of a row, twice
    step = math.lcm(LENGTH_STEP, parts)
    longest = max(len(row.ids) - 1 for row in self.rows)
    length = -(-longest // step) * step
    limit = self.setup.model.max_length
    if limit is not None and length > limit:
      length = limit
    sharding = batch_sharding(self.setup.mesh)
    for first in range(0, len(self.rows), size):
      rows = self.rows[first:first + size]
      filled = [rows[i % len(rows)] for i in range(size)]
      yield make_batch(filled, length, self.setup.tokenizer.eot, sharding), len(rows)


@functools.partial(jax.jit, static_argnums=0)
def _scores(model: Transformer, params: Any, batch: LanguageModelBatch) -> jax.Array:
  return sequence_log_probs(model, params, batch)


def encode_choice(question: Question, choice: str, tokenizer: Tokenizer) -> Row:
  """The ids of a question and a choice, encoded as one text, behind what a document begins with.

  Raises:
    ConfigError: a token lies across the boundary, so that the choice has no log-likelihood of its own.
  """
  prompt = [int(token) for token in tokenizer.encode(question.text)]
  whole = [int(token) for token in tokenizer.encode(question.text + choice)]
  is_apart = whole[:len(prompt)] == prompt and len(whole) > len(prompt)
  require(is_apart, 'path', question.where,
          f'a token lies across the end of the question and the choice {choice!r}: let the question end where a word '
          'does, without white space, or set delimiter')
  before = opened(tokenizer, prompt)
  return Row([*before, *whole[len(prompt):]], len(before))


def make_batch(rows: Sequence[Row], length: int, eot: int, sharding: jax.sharding.Sharding) -> LanguageModelBatch:
  """Rows padded to `length`; `weights` is 1 where the target is a token of the choice."""
  shape = len(rows), length
  tokens = np.full(shape, eot, np.int32)
  targets = np.full(shape, eot, np.int32)
  weights = np.zeros(shape, np.float32)
  segment_ids = np.zeros(shape, np.int32)
  for i, row in enumerate(rows):
    end = len(row.ids) - 1
    tokens[i, :end] = row.ids[:-1]
    targets[i, :end] = row.ids[1:]
    weights[i, row.start - 1:end] = 1
    segment_ids[i, :end] = 1
  positions = np.broadcast_to(np.arange(length, dtype=np.int32), shape)

  def place(array: np.ndarray) -> jax.Array:
    return jax.make_array_from_callback(shape, sharding, lambda index: array[index])

  return LanguageModelBatch(place(tokens), place(targets), place(weights), place(positions), place(segment_ids))


# ---------------------------------------------------------------------------------------------- reading
def read_questions(path: pathlib.Path, limit: int | None) -> list[Question]:
  """The first `limit` questions of a file of JSON lines, or all. Raises ConfigError naming the line."""
  if not path.is_file():
    raise ConfigError('path', str(path), 'no such file: name one of JSON lines with question, choices and answer')
  questions = []
  content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
  for number, line in enumerate(content.splitlines(), 1):
    if line.strip():
      questions.append(read_question(line, f'{path}:{number}'))
    if len(questions) == limit:
      break
  require(bool(questions), 'path', str(path), 'it holds no question')
  return questions


def read_question(line: bytes, where: str) -> Question:
  row = formats.json_object(line, where)
  for name in ('question', 'choices', 'answer'):
    if name not in row:
      raise formats.bad(where, f'no field {name!r}', f'found {sorted(row)[:8]}; correct the line')
  question, choices, answer = row['question'], row['choices'], row['answer']
  are_texts = isinstance(choices, list) and all(isinstance(choice, str) and choice for choice in choices)
  if not isinstance(question, str) or not are_texts or len(choices) < 2:
    raise formats.bad(where, 'question is no text, or choices are not two texts or more', 'correct the line')
  is_place = isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices)
  if not is_place:
    raise formats.bad(where, f'answer {answer!r} is no place among the {len(choices)} choices',
                      'give one from 0 on; correct the line')
  return Question(question, tuple(choices), answer, where)
