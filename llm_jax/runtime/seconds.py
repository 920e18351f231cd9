"""Times that the environment may set: they belong to a cluster, and not to a run."""
import math
import os

from llm_jax.config.errors import ConfigError


def seconds_of(variable: str, default: float) -> float:
  """The number of seconds that an environment variable holds.   Raises: ConfigError where it holds no such number."""
  text = os.environ.get(variable)
  if not text:
    return default
  try:
    seconds = float(text)
  except ValueError:
    seconds = math.nan
  if not 0 < seconds < math.inf:
    raise ConfigError(variable, text, 'give a number of seconds above 0')
  return seconds
