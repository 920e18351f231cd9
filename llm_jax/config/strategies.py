"""How the questions of a task are put to a model, on the command line: `--strategy=self_consistency:n=40`."""
import dataclasses
import difflib
from typing import ClassVar

from llm_jax.config.errors import ConfigError, require

__all__ = ['AutoCoT', 'SelfConsistency', 'Strategy', 'ZeroShotCoT', 'read_strategy']


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


Strategy = ZeroShotCoT | SelfConsistency | AutoCoT
KINDS: dict[str, type[Strategy]] = {kind.name: kind for kind in (ZeroShotCoT, SelfConsistency, AutoCoT)}


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
  values: dict[str, int | float | bool] = {}
  for setting in filter(None, settings.split(',')):
    key, _, value = setting.partition('=')
    require(key in fields, '--strategy', setting, f'{name} has no such setting: use {", ".join(fields)}')
    values[key] = _number('--strategy', setting, value, fields[key].default)
  return kind(**values)  # pyright: ignore[reportArgumentType]  # of the type of each field's default


def _number(flag: str, setting: str, value: str, default: object) -> int | float | bool:
  """A value of the type of the field's default."""
  try:
    match default:
      case bool():
        return {'true': True, 'false': False}[value.lower()]
      case int():
        return int(value)
      case _:
        return float(value)
  except (ValueError, KeyError) as error:
    raise ConfigError(flag, setting, f'use a value such as {default}') from error
