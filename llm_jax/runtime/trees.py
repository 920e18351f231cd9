"""Folders with the files of a thousand processes. Over a network each question about a file takes about a millisecond,
so many are asked at once.
"""
import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from llm_jax.runtime.buckets import BucketPath

T = TypeVar('T')
U = TypeVar('U')

THREADS = 32
FEW = 64  # as many are asked for one after the other


@dataclasses.dataclass(frozen=True)
class Tree:
  """What is below a folder, by paths relative to it, '/' between names.

  files: all but folders, sorted. A link is one of them, wherever it leads.
  levels: the folders, those that are equally deep together, from the folder itself ('') downwards.
  """
  files: list[str]
  levels: list[list[str]]

  @property
  def folders(self) -> list[str]:
    """All folders but the one itself."""
    return [name for level in self.levels[1:] for name in level]


def read_tree(folder: Path) -> Tree:
  """Raises FileNotFoundError or another OSError where the folder, or one in it, cannot be read."""
  if isinstance(folder, BucketPath):  # which has no folders
    return Tree(folder.names(), [['']])
  files: list[str] = []
  levels = [['']]
  while levels[-1]:
    deeper: list[str] = []
    for found_files, found_folders in for_each(lambda below: _read_one(folder, below), levels[-1]):
      files += found_files
      deeper += found_folders
    levels.append(sorted(deeper))
  return Tree(sorted(files), levels[:-1])


def _read_one(folder: Path, below: str) -> tuple[list[str], list[str]]:
  files: list[str] = []
  folders: list[str] = []
  start = f'{below}/' if below else ''
  with os.scandir(folder / below) as entries:
    for entry in entries:
      (folders if entry.is_dir(follow_symlinks=False) else files).append(start + entry.name)
  return files, folders


def remove_tree(folder: Path) -> None:
  """Removes the folder and all in it; of a link not what it leads to."""
  tree = read_tree(folder)
  for_each(lambda name: (folder / name).unlink(), tree.files)
  for level in reversed(tree.levels):
    for_each(lambda name: (folder / name).rmdir(), level)


def for_each(function: Callable[[T], U], items: Iterable[T]) -> list[U]:
  """What the function returns for each, in order; many at once where there are many."""
  items = list(items)
  if len(items) <= FEW:
    return [function(item) for item in items]
  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    return list(pool.map(function, items))
