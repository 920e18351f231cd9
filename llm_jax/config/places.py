"""Names of places: a path of this machine, or a URL such as gs://bucket/run.

`pathlib` takes a URL for a path (`gs:/bucket/run`): what names a folder or a file is looked at here before it becomes
one.
"""
import dataclasses
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from llm_jax.config.errors import ConfigError
from llm_jax.config.source import SourceConfig
from llm_jax.config.type_hints import is_sequence

SCHEME = re.compile(r'([A-Za-z][A-Za-z0-9+.-]*)://')
BUCKETS = ('gs', 's3')
HALF_TYPED = re.compile(rf'({"|".join(BUCKETS)}):(?!//)')
CACHE = 'LLM_JAX_CACHE'
FIELDS = ('path', 'folder', 'workdir', 'index')  # of a configuration, which name a place


def scheme_of(text: str) -> str:
  """'gs' of gs://bucket/run; '' of a path."""
  match = SCHEME.match(text) or HALF_TYPED.match(text)
  return match[1].lower() if match else ''


def check_is_path(field: str, text: str) -> None:
  """Refuses a URL.

  Raises:
    ConfigError: naming `field`.
  """
  scheme = scheme_of(text)
  if scheme == 'file':
    raise ConfigError(field, text, f'a path stands without {text[:text.index("/")]}//: leave that out')
  if scheme:
    if scheme in BUCKETS:
      raise ConfigError(field, text, 'cannot lie in a bucket, as --workdir, the path of a source and the workdir of a '
                        'teacher can: name a path of this machine')
    raise ConfigError(field, text, f'{scheme}:// cannot be read or written here: copy it to a file system of this '
                      'machine (or mount the bucket as one) and name the path')


def is_bucket(text: str) -> bool:
  return scheme_of(text) in BUCKETS


def check_places(config: Any, path: str = 'config') -> None:
  """Refuses every field of a configuration that names a file or a folder by a URL, but for what may lie in a bucket,
  and the cache folder likewise.

  Raises:
    ConfigError: naming the field.
  """
  check_is_path(CACHE, os.environ.get(CACHE, ''))
  for place in places(config, path):
    if not place.may_be_bucket or not is_bucket(place.text):
      check_is_path(place.field, place.text)


class Place(NamedTuple):
  """What a field names."""
  field: str
  text: str
  may_be_bucket: bool


def places(value: Any, path: str) -> Iterator[Place]:
  """All that names a file or a folder in a configuration."""
  if is_sequence(value):
    for i, item in enumerate(value):
      yield from places(item, f'{path}[{i}]')
  elif dataclasses.is_dataclass(value):
    for field in dataclasses.fields(value):
      part = getattr(value, field.name)
      if field.name in FIELDS and isinstance(part, str):
        may_be_bucket = field.name == 'workdir' or (field.name == 'path' and isinstance(value, SourceConfig))
        yield Place(f'{path}.{field.name}', part, may_be_bucket)
      yield from places(part, f'{path}.{field.name}')
