"""From a configuration to the class that does its work, found by name so that `config/` stays free of jax."""
import importlib
from typing import Any


def load(config: Any) -> Any:
  """The class that `config.implementation`, 'package.module:Class', names; its module is imported now."""
  module, _, name = config.implementation.partition(':')
  return getattr(importlib.import_module(module), name)
