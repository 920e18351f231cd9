"""Packages that parts of a configuration need beside the core: asked for before anything expensive."""
import dataclasses
import importlib.util
from collections.abc import Iterator
from typing import Any

from llm_jax.config.errors import ConfigError
from llm_jax.config.type_hints import is_sequence


def check_packages(config: Any, path: str = 'config') -> None:
  """Refuses a configuration of which a part needs a package that is not installed.

  A class names them in `packages`, and in `extra` what installs them.

  Raises:
    ConfigError: names the part and the line that installs the package.
  """
  for place, part in parts(config, path):
    for package in getattr(part, 'packages', ()):
      if not is_installed(package):
        raise ConfigError(place, part, f"needs {package}, which is not installed: pip install 'llm_jax[{part.extra}]'")


def is_installed(package: str) -> bool:
  """Whether it can be imported. A folder of that name without code, such as the one that wandb keeps runs in, is none.
  """
  spec = importlib.util.find_spec(package)
  return spec is not None and spec.origin is not None


def parts(value: Any, path: str) -> Iterator[tuple[str, Any]]:
  """(path, part) of every dataclass in a configuration, itself included."""
  if is_sequence(value):
    for i, item in enumerate(value):
      yield from parts(item, f'{path}[{i}]')
  elif dataclasses.is_dataclass(value):
    yield path, value
    for field in dataclasses.fields(value):
      yield from parts(getattr(value, field.name), f'{path}.{field.name}')
