"""Readers of the file formats: each yields (key, read), and `read()` checks and gives one document.

A bad row raises ConfigError with the file and the line, row or record, when it is read.
"""
import gzip
import json
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from llm_jax.config.errors import ConfigError

T = TypeVar('T')
Files = dict[str, pathlib.Path]
LONGEST_ROW = 1 << 28  # bytes of one JSONL row; a longer one is refused without being held in memory
CHUNK = 1 << 22  # tokens scanned at a time for separators


def bad(where: str, reason: str, hint: str) -> ConfigError:
  return ConfigError('path', where, f'{reason}: {hint}')


def utf8_text(content: bytes, path: str) -> str:
  try:
    return content.decode()
  except UnicodeDecodeError as error:
    line = content.count(b'\n', 0, error.start) + 1
    raise bad(f'{path}:{line}', 'not UTF-8', f'byte {content[error.start]:#04x}; convert the file') from error


def json_object(line: bytes, where: str, hint: str = 'correct the line') -> dict:
  """One line of JSONL. `hint` ends the message that refuses it."""
  if len(line) > LONGEST_ROW:
    raise bad(where, 'row too long', f'more than {LONGEST_ROW >> 20} MiB; split it')
  try:
    row = json.loads(line.decode())
  except UnicodeDecodeError as error:
    raise bad(where, 'not UTF-8', f'byte {line[error.start]:#04x}; {hint}') from error
  except (ValueError, RecursionError) as error:
    raise bad(where, 'not JSON', f'{error}; {hint}') from error
  if not isinstance(row, dict):
    raise bad(where, 'not a JSON object', f'a {type(row).__name__}; {hint}')
  return row


def check_unicode(text: str, where: str, hint: str = 'correct the line') -> None:
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise bad(where, 'not Unicode', f'half of a surrogate pair at {error.start}; {hint}') from error


def text_of_json(line: bytes, where: str, field: str) -> str:
  """The text under `field` of one line of JSONL."""
  row = json_object(line, where, "correct the line or set on_error='skip'")
  if field not in row:
    raise bad(where, f'no field {field!r}', f"found {sorted(row)[:8]}; set `field`, or on_error='skip'")
  text = row[field]
  if not isinstance(text, str):
    raise bad(where, f'field {field!r} is not text', f"a {type(text).__name__}; set `field`, or on_error='skip'")
  check_unicode(text, where, "correct the line or set on_error='skip'")
  return text


def jsonl(files: Files, parse: Callable[[bytes, str], T]) -> Iterator[tuple[str, Callable[[], T]]]:
  """One JSON object a line, `.gz` or plain; blank lines do not count as documents. `parse(line, where)` reads one."""
  for name, path in files.items():
    number = 0
    try:
      with gzip.open(path) if path.name.endswith('.gz') else open(path, 'rb') as file:
        while line := file.readline(LONGEST_ROW + 1):
          number += 1
          if len(line) > LONGEST_ROW and not line.endswith(b'\n'):
            while (rest := file.readline(CHUNK)) and not rest.endswith(b'\n'):
              pass
          if line.strip():
            yield f'{name}:{number}', lambda line=line, where=f'{path}:{number}': parse(line, where)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
      raise bad(f'{path}:{number + 1}', 'damaged gzip file', f'{error}; fetch it again') from error


def parquet(files: Files, field: str) -> Iterator[tuple[str, Callable[[], str]]]:
  import pyarrow
  import pyarrow.parquet

  def read(value: 'pyarrow.Scalar', where: str) -> str:
    try:
      text = value.as_py()
    except UnicodeDecodeError as error:
      raise bad(where, 'not UTF-8', str(error)) from error
    if text is None:
      raise bad(where, f'column {field!r} is null', 'filter such rows out')
    return text

  for name, path in files.items():
    try:
      with pyarrow.parquet.ParquetFile(path) as file:
        if field not in file.schema_arrow.names:
          raise bad(str(path), f'no column {field!r}', f'found {file.schema_arrow.names[:8]}; set `field`')
        kind = file.schema_arrow.field(field).type
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
          raise bad(str(path), f'column {field!r} is not text', f'it is {kind}; set `field`')
        number = 0
        for batch in file.iter_batches(batch_size=64, columns=[field]):
          for value in batch.column(0):
            yield f'{name}:{number}', lambda value=value, where=f'{path}:{number}': read(value, where)
            number += 1
    except (pyarrow.ArrowException, OSError) as error:
      raise bad(str(path), 'not a Parquet file', f'{error}; fetch it again') from error


def array_record(files: Files) -> Iterator[tuple[str, Callable[[], str]]]:
  from array_record.python.array_record_module import ArrayRecordReader
  for name, path in files.items():
    try:
      reader = ArrayRecordReader(str(path))
      for number in range(reader.num_records()):
        record = reader.read()
        yield f'{name}:{number}', lambda record=record, where=f'{path}:{number}': utf8_text(record, where)
      reader.close()
    except (RuntimeError, ValueError) as error:
      if isinstance(error, ConfigError):
        raise
      raise bad(str(path), 'not an ArrayRecord file', f'{error}; fetch it again') from error


def tokens(files: Files, dtype: str, separator: int | None) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
  """Raw little-endian token ids; documents end with `separator`, which belongs to none of them."""
  for name, path in files.items():
    width = np.dtype(dtype).itemsize
    if path.stat().st_size % width:
      raise bad(str(path), f'not a file of {dtype}', f'its size is not a multiple of {width} bytes')
    if not path.stat().st_size:
      continue
    ids = np.memmap(path, np.dtype(dtype).newbyteorder('<'), 'r')
    start, number = 0, 0
    for end in _separators(ids, separator):
      if end > start:
        yield f'{name}:{number}', lambda part=ids[start:end]: part
        number += 1
      start = end + 1
    if start < len(ids):
      yield f'{name}:{number}', lambda part=ids[start:]: part


def _separators(ids: np.ndarray, separator: int | None) -> Iterator[int]:
  if separator is not None:
    for start in range(0, len(ids), CHUNK):
      yield from (np.flatnonzero(ids[start:start + CHUNK] == separator) + start).tolist()
