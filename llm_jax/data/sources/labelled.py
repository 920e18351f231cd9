"""Readers of texts with a class: each row is checked as it is read."""
import ast
import functools
import pathlib
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from llm_jax.config.sources import LabelledJsonl, LabelledSource, StandardLibraryFunctions
from llm_jax.data.packing.labelled import Example, LabelledEncoder
from llm_jax.data.sources import formats, standard_library
from llm_jax.data.sources.documents import JSONL, Reader, Record
from llm_jax.data.sources.formats import Files

SHORTEST, LONGEST = 80, 1_000  # characters of a function of the standard library that is an example


class LabelledJsonlReader(Reader[LabelledJsonl]):
  suffixes = JSONL

  def encoder(self) -> LabelledEncoder:
    return LabelledEncoder(self.config.special_tokens)

  def records(self, files: Files) -> Iterable[Record]:
    return formats.jsonl(files, functools.partial(read_example, source=self.config))


class StandardLibraryFunctionsReader(Reader[StandardLibraryFunctions]):

  def encoder(self) -> LabelledEncoder:
    return LabelledEncoder(self.config.special_tokens)

  def find(self) -> Files:
    """The files of the packages that are the labels."""
    files = standard_library.source_files()
    return {name: path for name, path in files.items() if name.split('/')[0] in self.config.labels}

  def records(self, files: Files) -> Iterable[Record]:
    return library_functions(files, self.config)


def read_example(line: bytes, where: str, source: LabelledJsonl) -> Example:
  """One line of JSONL. Raises ConfigError naming the row."""
  row = formats.json_object(line, where)
  names = (source.text,) if source.pair is None else (source.text, source.pair)
  for name in (*names, source.label):
    if name not in row:
      raise formats.bad(where, f'no field {name!r}', f'found {sorted(row)[:8]}; correct the line, or name the field')
  for name in names:
    if not isinstance(row[name], str):
      raise formats.bad(where, f'field {name!r} is not text', f'a {type(row[name]).__name__}; correct the line')
    formats.check_unicode(row[name], where)
    if not row[name].strip():
      raise formats.bad(where, f'field {name!r} is empty', 'leave the line out')
  return Example(tuple(row[name] for name in names), _place(row[source.label], where, source))


def _place(label: Any, where: str, source: LabelledJsonl) -> int:
  """Of the label among the source's."""
  is_number = isinstance(label, int) and not isinstance(label, bool)
  if str(label) not in source.labels or not (is_number or isinstance(label, str)):
    raise formats.bad(where, f'{source.label} {label!r} is unknown',
                      f'labels holds {source.labels[:20]}; correct the line, or add it')
  return source.labels.index(str(label))


def library_functions(files: Files, source: LabelledSource) -> Iterator[tuple[str, Callable[[], Example]]]:
  """(file, read) of the functions and methods in the packages that are the labels, of equal ones the first."""
  found = set()
  for name, path in files.items():
    package, *inside = name.split('/')
    if not inside or package not in source.labels:
      continue
    for text in _functions(path):
      if text not in found:
        found.add(text)
        yield name, functools.partial(Example, (text,), source.labels.index(package))


def _functions(path: pathlib.Path) -> Iterator[str]:
  """Sources, without what is indented in all lines. A file that is not Python has none."""
  try:
    with warnings.catch_warnings(action='ignore'):
      text = path.read_text(encoding='utf-8')
      nodes = list(reversed(ast.parse(text).body))
  except (SyntaxError, ValueError):
    return
  lines = text.split('\n')
  while nodes:
    node = nodes.pop()
    if isinstance(node, ast.ClassDef):
      nodes += reversed(node.body)
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      function = textwrap.dedent('\n'.join(lines[node.lineno - 1:node.end_lineno]))
      if SHORTEST <= len(function) <= LONGEST:
        yield function
