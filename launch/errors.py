"""Wrong input on a command line: one line on stderr and exit code 2."""
import contextlib
import sys
from collections.abc import Generator
from typing import NoReturn

from llm_jax.config.errors import ConfigError

BAD_INPUT = 2  # the exit code of wrong flags and wrong configurations


class Refused(Exception):
  """Wrong input that is no field of the configuration; `str()` is the one line to print."""


@contextlib.contextmanager
def refusing() -> Generator[None]:
  """Ends the program with one line and exit code 2 where wrong input is found inside."""
  try:
    yield
  except (Refused, ConfigError) as error:
    refuse(str(error))


def refuse(message: str) -> NoReturn:
  """Prints `message` as one line on stderr and exits with code 2."""
  print('error: ' + ' '.join(message.split('\n')), file=sys.stderr)
  sys.exit(BAD_INPUT)
