"""Where process 0 of several is reached."""
import re

from llm_jax.config.errors import ConfigError


def split_address(field: str, address: str) -> tuple[str, int]:
  """The host and the port of `host:port`; an IPv6 host stands in brackets.

  Raises:
    ConfigError: names `field` when it is no such address.
  """
  match = re.fullmatch(r'([^\s/]+):(\d{1,5})', address)
  if not match or not 0 < int(match[2]) < 65_536:
    raise ConfigError(field, address, 'give host:port with a port from 1 to 65535, such as localhost:12345')
  return match[1].strip('[]'), int(match[2])
