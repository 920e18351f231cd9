"""Language models that say which of two answers is better, or how good one is. Nothing of them is trained."""
import dataclasses
import math
import string
from collections.abc import Sequence

from llm_jax.config.errors import ConfigError, require
from llm_jax.config.source import TEMPLATES
from llm_jax.config.teachers import Teacher

__all__ = ['PairJudge', 'RatingJudge']

PRINCIPLE = 'principle'


def fields_of(template: str, known: Sequence[str], needed: Sequence[str]) -> set[str]:
  """Names that stand in braces in a template.

  Raises:
    ConfigError: it is empty, cannot be read, lacks one of `needed`, or has one that is not `known`.
  """
  shown = ', '.join(f'{{{name}}}' for name in needed)
  require(bool(template.strip()), 'template', template, f'write what the judge is asked, with {shown} in it')
  try:
    parts = list(string.Formatter().parse(template))
  except ValueError as error:
    raise ConfigError('template', template, f'{error}: write a brace that is meant as one twice') from error
  for _, name, form, conversion in parts:
    is_plain = not form and conversion is None
    require(name is None or name in known and is_plain, 'template', template,
            f'{{{name}}} is none of its fields: use {", ".join(f"{{{each}}}" for each in known)}')
  found = {name for _, name, _, _ in parts if name is not None}
  missing = [name for name in needed if name not in found]
  require(not missing, 'template', template, f'lacks {", ".join(f"{{{name}}}" for name in missing)}: put {shown} into '
          'it')
  return found


def _check_options(options: Sequence[str]) -> None:
  require(len(set(options)) == len(options) >= 2 and all(options), 'options', options,
          'name what the judge may answer, each once: two or more texts of one token each')


def _check_chat(chat: str | None) -> None:
  require(chat is None or chat in TEMPLATES, 'chat', chat, f'use one of {TEMPLATES}, or None')


@dataclasses.dataclass(frozen=True)
class PairJudge:
  """A language model that is asked which of two answers to a prompt is better (Bai et al. 2022, section 4.1).

  It is asked twice, each answer being the first once. Each time the probabilities of the two options are divided by
  their sum; the mean of both is the probability that an answer is better.

  model: Params(stage) of the run, SavedRun(workdir) or HuggingFace(folder), with the run's tokenizer.
  template: what it is asked, with {prompt}, {first} and {second}, and {principle} where there are principles.
  options: what it answers for the first and for the second, one token each.
  principles: of which one is put at {principle}, drawn for each pair by a hash of its texts; (): none.
  chat: the chat template in which the question is what the user says; None: it is a text to go on with.
  """
  model: Teacher
  template: str
  options: tuple[str, ...] = ('A', 'B')
  principles: tuple[str, ...] = ()
  chat: str | None = None

  def __post_init__(self):
    needed = ('prompt', 'first', 'second')
    found = fields_of(self.template, (*needed, PRINCIPLE), needed)
    _check_options(self.options)
    require(len(self.options) == 2, 'options', self.options, 'name one for each of the two answers')
    _check_chat(self.chat)
    require(bool(self.principles) == (PRINCIPLE in found), 'principles', self.principles,
            'the template has no {principle}: put it in' if self.principles else
            'the template has {principle}: name one or more')


@dataclasses.dataclass(frozen=True)
class RatingJudge:
  """A language model that is asked how good an answer to a prompt is. The rating is the expected value of its options,
  their probabilities divided by their sum.

  model: Params(stage) of the run, SavedRun(workdir) or HuggingFace(folder), with the run's tokenizer.
  template: what it is asked, with {prompt} and {answer}.
  options: what it may answer, one token each.
  values: of each option; (): 0 for the first, 1 for the last, and even steps between.
  chat: the chat template in which the question is what the user says; None: it is a text to go on with.
  """
  model: Teacher
  template: str
  options: tuple[str, ...] = ('1', '2', '3', '4', '5')
  values: tuple[float, ...] = ()
  chat: str | None = None

  def __post_init__(self):
    needed = ('prompt', 'answer')
    fields_of(self.template, needed, needed)
    _check_options(self.options)
    _check_chat(self.chat)
    is_whole = not self.values or len(self.values) == len(self.options) and all(map(math.isfinite, self.values))
    require(is_whole, 'values', self.values, f'give a finite number for each of the {len(self.options)} options')

  @property
  def worth(self) -> tuple[float, ...]:
    """The value of each option."""
    steps = len(self.options) - 1
    return self.values or tuple(i / steps for i in range(steps + 1))


Judge = PairJudge | RatingJudge
