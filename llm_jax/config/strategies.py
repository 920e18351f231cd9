"""How the questions of a task are put to a model, on the command line: `--strategy=self_consistency:n=40`."""
import dataclasses
import difflib
from typing import ClassVar

from llm_jax.config.errors import ConfigError, require

__all__ = [
  'ActivePrompt', 'AutoCoT', 'Chaining', 'Prompting', 'Retrieval', 'SelfConsistency', 'Strategy', 'TreeOfThoughts',
  'ZeroShotCoT', 'read_strategy',
]


@dataclasses.dataclass(frozen=True)
class ZeroShotCoT:
  """The model is asked to think first, and for the answer behind that (Kojima et al. 2022).

  tokens: of reasoning, at most.
  """
  tokens: int = 256
  name: ClassVar[str] = 'zero_shot_cot'

  def __post_init__(self):
    require(self.tokens >= 1, '--strategy', f'tokens={self.tokens}', 'use 1 or more')


@dataclasses.dataclass(frozen=True)
class SelfConsistency:
  """The answer that most of n drawn texts agree on (Wang et al. 2022).

  n: texts.   temperature: that they are drawn at.   like_harness: texts without an answer have a vote too.
  """
  n: int = 40
  temperature: float = 0.7
  like_harness: bool = False
  name: ClassVar[str] = 'self_consistency'

  def __post_init__(self):
    require(self.n >= 1, '--strategy', f'n={self.n}', 'use 1 or more')
    require(self.temperature > 0, '--strategy', f'temperature={self.temperature}', 'use a number above 0')


@dataclasses.dataclass(frozen=True)
class AutoCoT:
  """Examples that the model writes itself, for one question of each cluster (Zhang et al. 2022).

  clusters: of questions.   seed: of their centres.
  """
  clusters: int = 8
  seed: int = 0
  name: ClassVar[str] = 'auto_cot'

  def __post_init__(self):
    require(self.clusters >= 1, '--strategy', f'clusters={self.clusters}', 'use 1 or more')


@dataclasses.dataclass(frozen=True)
class Chaining:
  """Prompts of which each has the answers of those before (Wu et al. 2022). The last answer counts.

  file: a JSON list of {"template", "name", "stops", "max_new_tokens"}, see `llm_jax/prompting/chaining.py`.
  """
  file: str = ''
  name: ClassVar[str] = 'chaining'

  def __post_init__(self):
    require(bool(self.file), '--strategy', f'file={self.file}', 'name the file of the prompts')


@dataclasses.dataclass(frozen=True)
class TreeOfThoughts:
  """A search over lines of reasoning, which the model proposes and votes on (Yao et al. 2023).

  thoughts: next lines that are drawn for each beginning.   breadth: beginnings that are kept.   depth: lines at most.
  votes: ballots on which beginnings are the best.   temperature: that lines and ballots are drawn at.
  tokens: of a line, at most.
  """
  thoughts: int = 3
  breadth: int = 2
  depth: int = 4
  votes: int = 5
  temperature: float = 0.7
  tokens: int = 48
  name: ClassVar[str] = 'tree_of_thoughts'

  def __post_init__(self):
    for field in ('thoughts', 'breadth', 'depth', 'votes', 'tokens'):
      require(getattr(self, field) >= 1, '--strategy', f'{field}={getattr(self, field)}', 'use 1 or more')
    require(self.temperature > 0, '--strategy', f'temperature={self.temperature}', 'use a number above 0')


@dataclasses.dataclass(frozen=True)
class ActivePrompt:
  """Examples that a person writes for the questions of which the model is least sure (Diao et al. 2023).

  Where the file `annotations` is not there yet, the questions are chosen and written into it, and nothing is scored.

  annotations: JSON lines that a person fills in.   count: questions to be annotated.
  n: answers that are drawn to each question.   temperature: that they are drawn at.
  uncertainty: 'disagreement' or 'entropy' of the answers.
  """
  annotations: str = ''
  count: int = 8
  n: int = 10
  temperature: float = 0.7
  uncertainty: str = 'disagreement'
  name: ClassVar[str] = 'active_prompt'

  def __post_init__(self):
    require(bool(self.annotations), '--strategy', f'annotations={self.annotations}', 'name the file to be annotated')
    for field in ('count', 'n'):
      require(getattr(self, field) >= 1, '--strategy', f'{field}={getattr(self, field)}', 'use 1 or more')
    require(self.temperature > 0, '--strategy', f'temperature={self.temperature}', 'use a number above 0')
    require(self.uncertainty in ('disagreement', 'entropy'), '--strategy', f'uncertainty={self.uncertainty}',
            'use disagreement or entropy')


@dataclasses.dataclass(frozen=True)
class Retrieval:
  """Passages before every question, those that are found for it (Lewis et al. 2020).

  index: a folder that `launch.retrieve --build` has made.
  count: passages before a question.
  method: 'bm25', 'dense' or 'fused'; '': the last of these that the index allows.
  field: of a question's row, which is searched for; '': the last part of its prompt.
  """
  index: str = ''
  count: int = 1
  method: str = ''
  field: str = ''
  name: ClassVar[str] = 'retrieval'

  def __post_init__(self):
    require(bool(self.index), '--strategy', f'index={self.index}', 'name the folder that launch.retrieve --build makes')
    require(self.count >= 1, '--strategy', f'count={self.count}', 'use 1 or more')
    require(self.method in ('', 'bm25', 'dense', 'fused'), '--strategy', f'method={self.method}',
            'use bm25, dense or fused')


# Those that change what is written, and those that add to what is read.
Prompting = ZeroShotCoT | SelfConsistency | AutoCoT | Chaining | TreeOfThoughts | ActivePrompt
Strategy = Prompting | Retrieval
KINDS: dict[str, type[Strategy]] = {kind.name: kind for kind in (
  ZeroShotCoT, SelfConsistency, AutoCoT, Chaining, TreeOfThoughts, ActivePrompt, Retrieval)}
Setting = int | float | bool | str


def read_strategy(text: str) -> Strategy:
  """`self_consistency:n=40,temperature=0.5` as a strategy.

  Raises:
    ConfigError: there is no such strategy, or it has no such setting, or not with this value.
  """
  name, _, settings = text.partition(':')
  kind = KINDS.get(name)
  if kind is None:
    near = difflib.get_close_matches(name, KINDS, n=1) or list(KINDS)
    raise ConfigError('--strategy', name, f'no such strategy: use {", ".join(near)}')
  fields = {field.name: field for field in dataclasses.fields(kind)}
  values: dict[str, Setting] = {}
  for setting in filter(None, settings.split(',')):
    key, _, value = setting.partition('=')
    require(key in fields, '--strategy', setting, f'{name} has no such setting: use {", ".join(fields)}')
    values[key] = _value('--strategy', setting, value, fields[key].default)
  return kind(**values)  # pyright: ignore[reportArgumentType]  # of the type of each field's default


def _value(flag: str, setting: str, value: str, default: object) -> Setting:
  """A value of the type of the field's default."""
  try:
    match default:
      case str():
        return value
      case bool():
        return {'true': True, 'false': False}[value.lower()]
      case int():
        return int(value)
      case _:
        return float(value)
  except (ValueError, KeyError) as error:
    raise ConfigError(flag, setting, f'use a value such as {default}') from error
