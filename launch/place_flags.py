"""Flags that name a file or a folder."""
import argparse
import contextlib
import pathlib

from llm_jax.config.errors import ConfigError
from llm_jax.config.places import check_is_path
from llm_jax.runtime.buckets import BucketPath, place


def local_path(text: str) -> pathlib.Path:
  """What argparse makes of a path; a URL is refused, which would become a folder of that name here."""
  try:
    check_is_path('', text)
  except ConfigError as error:
    raise argparse.ArgumentTypeError(f'{text}: {error.hint}') from None
  return pathlib.Path(text)


def run_path(text: str) -> pathlib.Path:
  """What argparse makes of the folder of a run, which may lie in a bucket."""
  found = place(text)
  if not isinstance(found, BucketPath):
    return local_path(text)
  try:
    found.check_access('', writes=False)
  except ConfigError as error:
    raise argparse.ArgumentTypeError(f'{text}: {error.hint}') from None
  return found


def is_folder(path: pathlib.Path) -> bool:
  """Whether it is there; what cannot be the name of anything, such as one of 300 letters, is not."""
  with contextlib.suppress(OSError):
    return path.is_dir()
  return False
