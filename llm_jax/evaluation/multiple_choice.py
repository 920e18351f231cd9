"""Multiple-choice questions, scored by the log-likelihood of each choice behind its question."""
import codecs
import dataclasses
import functools
import math
import pathlib

import numpy as np

from llm_jax.config.errors import ConfigError, require
from llm_jax.config.evaluations import MultipleChoice
from llm_jax.data.sources import formats
from llm_jax.data.tokenizers.base import Tokenizer, check_ids, opened
from llm_jax.decode.score import score
from llm_jax.evaluation.protocol import Evaluated, Evaluation, Metrics, Moment, Result
from llm_jax.tracking.display import Table


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
    """log p(choice | question) in nats for every row, the sum over the choice's tokens. A question is read once for all
    of its choices."""
    scored = score(self.setup.model, model.params, [row.ids[:row.start] for row in self.rows],
                   [row.ids[row.start:] for row in self.rows], execution=self.setup.execution,
                   batch_size=self.setup.phase.rows, heartbeat=model.heartbeat)
    return [one.total for one in scored]

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
