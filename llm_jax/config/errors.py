"""The one error a wrong configuration raises: field, value, hint."""
import contextlib
import math
import os
from collections.abc import Generator

LONGEST = 500  # characters of a value that are shown


class ConfigError(ValueError):
  """A wrong value in the configuration. `str()` is one line: `config.mesh.fsdp = 3: why and what to change`."""

  def __init__(self, field: str, value: object, hint: str):
    self.field, self.value, self.hint = field, value, hint
    shown = ' '.join(repr(value).splitlines())  # an array has several
    super().__init__(f'{field} = {shown if len(shown) <= LONGEST else shown[:LONGEST] + "..."}: {hint}')

  def __reduce__(self):
    return type(self), (self.field, self.value, self.hint)  # what another process makes it of again

  def under(self, path: str) -> 'ConfigError':
    """The same error with its field named from the root of the configuration; a file's path is its own name."""
    if os.sep in self.field:
      return self
    join = '' if self.field.startswith('[') else '.'
    return ConfigError(f'{path}{join}{self.field}' if self.field else path, self.value, self.hint)


def require(condition: bool, field: str, value: object, hint: str) -> None:
  if not condition:
    raise ConfigError(field, value, hint)


def require_sizes(part: object, *fields: str) -> None:
  for field in fields:
    value = getattr(part, field)
    require(value is None or value > 0, field, value, 'use a positive number, or None')


def require_weights(part: object, *fields: str) -> None:
  for field in fields:
    require(0 <= getattr(part, field) < math.inf, field, getattr(part, field), 'use a finite number of 0 or more')


@contextlib.contextmanager
def located(path: str) -> Generator[None]:
  """Names the field of a ConfigError raised inside from the root of the configuration."""
  try:
    yield
  except ConfigError as error:
    raise error.under(path) from error.__cause__
