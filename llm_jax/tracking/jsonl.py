"""Files of one JSON object a line, which survive a kill in the middle of a line and a disk that is full for a while."""
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from llm_jax.config.type_hints import is_mapping
from llm_jax.runtime.files import replace_file
from llm_jax.tracking.tracker import Record


class JsonlFile:
  """Appends objects to a file, and forgets those after a step."""

  def __init__(self, path: pathlib.Path):
    self.path = path
    self._may_be_torn = True  # whether the last line may be half an object: after a kill, or a failed write

  @property
  def name(self) -> str:
    return str(self.path)

  def write(self, record: Record) -> None:
    self.append(record.to_json())

  def append(self, entry: dict[str, Any]) -> None:
    start = '\n' if self._may_be_torn and _ends_mid_line(self.path) else ''
    self._may_be_torn = True
    # Opened anew each time (some 20 microseconds), so that a folder that is gone is noticed.
    with open(self.path, 'a', encoding='utf-8') as file:
      file.write(start + json.dumps(entry) + '\n')
    self._may_be_torn = False

  def rewind(self, stage: str, step: int) -> None:
    """Replaces the file at once, so that a kill leaves the old one; half a line at its end is dropped."""
    def is_kept(entry: dict[str, Any]) -> bool:
      return entry.get('stage') != stage or entry['step'] <= step

    _keep_only(self.path, is_kept)

  def close(self) -> None:
    """Every line is written already."""


def read_jsonl(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """The objects that have a step, in order. Lines that are not whole are passed over. No file: nothing."""
  if not path.exists():
    return
  with open(path, encoding='utf-8', errors='replace') as file:
    for line in file:
      try:
        entry = json.loads(line)
      except ValueError:
        continue
      if is_mapping(entry) and isinstance(entry.get('step'), int):
        yield dict(entry)


def _keep_only(path: pathlib.Path, is_kept: Callable[[dict[str, Any]], bool]) -> None:
  if not path.exists():
    return
  with replace_file(path) as file:
    for entry in read_jsonl(path):
      if is_kept(entry):
        file.write((json.dumps(entry) + '\n').encode())


def _ends_mid_line(path: pathlib.Path) -> bool:
  if not path.exists() or path.stat().st_size == 0:
    return False
  with open(path, 'rb') as file:
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b'\n'
