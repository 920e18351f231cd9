"""Panics of the tokenizers' libraries, which are written in Rust, as errors of the configuration."""
import contextlib
import os
from collections.abc import Generator

from llm_jax.config.errors import ConfigError

os.environ['RUST_BACKTRACE'] = '0'  # the stack of a panic is of no use to whoever wrote the pattern


@contextlib.contextmanager
def refusing_panics(field: str, value: object) -> Generator[None]:
  """Turns a panic inside into a ConfigError of the field that holds the regular expression.

  The libraries give up a match that goes back and forth too often, and panic. Their exception is no `Exception`, so
  that it would pass every handler and end the program with two stacks.
  """
  try:
    yield
  except BaseException as error:
    if type(error).__name__ != 'PanicException':
      raise
    reason = ' '.join(str(error).split())[:200]
    raise ConfigError(field, value, f'its regular expression takes too long on this text ({reason}): let no repeated '
                      'part repeat itself, as in (a+)+') from None
