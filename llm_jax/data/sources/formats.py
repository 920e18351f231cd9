"""Readers of the file formats: each yields (key, read), and `read()` checks and gives one document.

A bad row raises ConfigError with the file and the line, row or record, when it is read.
"""
import codecs
import functools
import gzip
import io
import json
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np

from llm_jax.config.errors import ConfigError
from llm_jax.data.sources import zst
from llm_jax.runtime.array_file import ArrayFile

if TYPE_CHECKING:
  import pyarrow

T = TypeVar('T')
Files = dict[str, pathlib.Path]
Records = Iterator[tuple[str, Callable[[], T]]]
LONGEST_ROW = 1 << 28  # bytes of one JSONL row; a longer one is refused without being held in memory
CHUNK = 1 << 22  # tokens, or bytes of a line that is too long, looked at in one go
PARQUET_ROWS = 64  # read at a time


def bad(where: str, reason: str, hint: str) -> ConfigError:
  """The error for a bad file or row.   where: such as `file:line`.   reason: what the counts of skipped rows call
  it."""
  return ConfigError('path', where, f'{reason}: {hint}')


def utf8_text(content: bytes, path: str) -> str:
  """The text of a file, without the byte order mark that some editors put before it."""
  try:
    return content.removeprefix(codecs.BOM_UTF8).decode()
  except UnicodeDecodeError as error:
    line = content.count(b'\n', 0, error.start) + 1
    raise bad(f'{path}:{line}', 'not UTF-8', f'byte {content[error.start]:#04x}; convert the file') from error


def json_object(line: bytes, where: str, hint: str = 'correct the line') -> dict[str, Any]:
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


def jsonl(files: Files, parse: Callable[[bytes, str], T]) -> Records[T]:
  """One JSON object a line, `.gz`, `.zst` or plain; blank lines do not count as documents.

  parse: (line, where) -> what it says.
  """
  for name, path in files.items():
    for number, line in _lines(path):
      if line.strip():
        yield f'{name}:{number}', functools.partial(parse, line, f'{path}:{number}')


def _lines(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
  """(number from 1 on, line). Of a line that is too long its beginning, more than LONGEST_ROW bytes: it is refused."""
  number = 0
  try:
    with _open_lines(path) as file:
      while line := file.readline(LONGEST_ROW + 1):
        number += 1
        if number == 1:
          line = line.removeprefix(codecs.BOM_UTF8)
        is_cut = len(line) > LONGEST_ROW and not line.endswith(b'\n')
        if is_cut:
          _skip_line(file)
        yield number, line
  except (EOFError, gzip.BadGzipFile, zlib.error, zst.DamagedError) as error:
    kind = 'zst' if path.name.endswith('.zst') else 'gzip'
    raise bad(f'{path}:{number + 1}', f'damaged {kind} file', f'{error}; fetch it again') from error


def _open_lines(path: pathlib.Path) -> IO[bytes] | gzip.GzipFile | io.BufferedReader:
  if path.name.endswith('.gz'):
    return gzip.open(path)
  return zst.open_file(path) if path.name.endswith('.zst') else open(path, 'rb')


def _skip_line(file: IO[bytes] | gzip.GzipFile | io.BufferedReader) -> None:
  """Reads on to the end of a line, a piece at a time."""
  while (piece := file.readline(CHUNK)) and not piece.endswith(b'\n'):
    pass


def parquet(files: Files, field: str) -> Records[str]:
  """The texts in a column."""
  import pyarrow
  for name, path in files.items():
    try:
      for number, value in enumerate(_column(path, field)):
        yield f'{name}:{number}', functools.partial(_text_of_scalar, value, field, f'{path}:{number}')
    except (pyarrow.ArrowException, OSError) as error:
      raise bad(str(path), 'not a Parquet file', f'{error}; fetch it again') from error


def _column(path: pathlib.Path, field: str) -> Iterator['pyarrow.Scalar[Any]']:
  import pyarrow
  import pyarrow.parquet
  with pyarrow.parquet.ParquetFile(path) as file:
    schema = file.schema_arrow
    if field not in schema.names:
      raise bad(str(path), f'no column {field!r}', f'found {schema.names[:8]}; set `field`')
    kind = schema.field(field).type
    is_text = pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)
    if not is_text:
      raise bad(str(path), f'column {field!r} is not text', f'it is {kind}; set `field`')
    for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=[field]):
      yield from batch.column(0)


def _text_of_scalar(value: 'pyarrow.Scalar[Any]', field: str, where: str) -> str:
  try:
    text = value.as_py()
  except UnicodeDecodeError as error:
    raise bad(where, 'not UTF-8', str(error)) from error
  if text is None:
    raise bad(where, f'column {field!r} is null', 'filter such rows out')
  return text


def array_record(files: Files) -> Records[str]:
  """A text a record."""
  from array_record.python.array_record_module import ArrayRecordReader
  for name, path in files.items():
    try:
      reader = ArrayRecordReader(str(path))
      for number in range(reader.num_records()):
        record = reader.read()
        yield f'{name}:{number}', functools.partial(utf8_text, record, f'{path}:{number}')
      reader.close()
    except (RuntimeError, ValueError) as error:
      raise bad(str(path), 'not an ArrayRecord file', f'{error}; fetch it again') from error


def tokens(files: Files, dtype: str, separator: int | None) -> Records[np.ndarray]:
  """Raw little-endian token ids; documents end with `separator`, which belongs to none of them."""
  for name, path in files.items():
    number = 0
    for ids, place in _token_documents(path, np.dtype(dtype), separator):
      yield f'{name}:{number}', lambda ids=ids, place=place: ids[place]
      number += 1


def _token_documents(path: pathlib.Path, dtype: np.dtype, separator: int | None) -> Iterator[tuple[ArrayFile, slice]]:
  """The ids of the file and the place of each document that is not empty."""
  num_bytes = path.stat().st_size
  if num_bytes % dtype.itemsize:
    raise bad(str(path), f'not a file of {dtype}', f'its size is not a multiple of {dtype.itemsize} bytes')
  if not num_bytes:
    return
  ids = ArrayFile(path, dtype.newbyteorder('<'))
  start = 0
  for end in _separators(ids, separator):
    if end > start:
      yield ids, slice(start, end)
    start = end + 1
  if start < len(ids):
    yield ids, slice(start, len(ids))


def _separators(ids: ArrayFile, separator: int | None) -> Iterator[int]:
  """Their places, looked for a chunk at a time."""
  if separator is None:
    return
  for start in range(0, len(ids), CHUNK):
    chunk = ids[start:start + CHUNK]
    yield from (np.flatnonzero(chunk == separator) + start).tolist()
