"""Active-Prompt: a person writes the reasoning where the model is least sure (Diao et al. 2023)."""
import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence

from llm_jax.config.errors import ConfigError, require
from llm_jax.prompting.answers import LAST_NUMBER, Extract, disagreement
from llm_jax.prompting.program import Exemplar, Generate, Program, texts
from llm_jax.runtime.files import write_atomic

Uncertainty = Callable[[Sequence[str]], float]


@dataclasses.dataclass(frozen=True)
class Unsure:
  """A question, what the model answered, and how unsure it is."""
  question: str
  answers: tuple[str, ...]
  uncertainty: float


def ask_often(ask: Generate, question: str, extract: Extract = LAST_NUMBER, uncertainty: Uncertainty = disagreement
              ) -> Program[Unsure]:
  """Draws several answers to one question (section 2.1).   ask: with the samples to draw."""
  [said] = yield [ask]
  answers = tuple(extract(text) for text in texts(said))
  return Unsure(question, answers, uncertainty(answers))


def most_unsure(pool: Sequence[Unsure], count: int) -> list[Unsure]:
  """Those to be annotated (section 2.2), the most unsure first; of equals the one that came first."""
  require(1 <= count <= len(pool), 'count', count, f'use 1 to {len(pool)}, the number of questions')
  return sorted(pool, key=lambda item: -item.uncertainty)[:count]


def write_annotations(chosen: Sequence[Unsure], path: pathlib.Path) -> None:
  """A file of JSON lines in which a person fills `rationale` and `answer` (section 2.3)."""
  rows = [{'question': item.question, 'rationale': '', 'answer': '', 'uncertainty': item.uncertainty,
           'answers': list(item.answers)} for item in chosen]
  write_atomic(path, ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows))


def read_annotations(path: pathlib.Path) -> list[Exemplar]:
  """The examples that a person has written.

  Raises:
    ConfigError: names the line that is damaged, or has no answer or no reasoning yet.
  """
  exemplars: list[Exemplar] = []
  for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
    where = f'{path}:{number}'
    try:
      row = json.loads(line)
      question, rationale, answer = (str(row[name]).strip() for name in ('question', 'rationale', 'answer'))
    except (ValueError, KeyError, TypeError) as error:
      raise ConfigError('annotations', where, f'is damaged ({error}): correct the line') from error
    require(bool(rationale and answer), 'annotations', where, 'has no rationale or no answer yet: write them')
    exemplars.append(Exemplar(question, answer, rationale))
  require(len(exemplars) > 0, 'annotations', str(path), 'it holds no question')
  return exemplars
