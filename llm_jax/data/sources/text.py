"""Readers of text and of ids: one for each type of source whose documents are plain."""
import functools
from collections.abc import Iterable, Iterator

from llm_jax.config.sources import ArrayRecord, Jsonl, Parquet, StandardLibrary, Text, TokenFile
from llm_jax.data.packing.text import TextEncoder, TokenEncoder
from llm_jax.data.sources import formats, standard_library
from llm_jax.data.sources.documents import JSONL, Config, Reader, Record
from llm_jax.data.sources.formats import Files


class PlainReader(Reader[Config]):
  """Documents are texts."""

  def encoder(self) -> TextEncoder:
    return TextEncoder()


class StandardLibraryReader(PlainReader[StandardLibrary]):
  whole_files = True
  skips_bad = True  # a few of its files are not UTF-8, on purpose

  def find(self) -> Files:
    return standard_library.source_files()

  def records(self, files: Files) -> Iterable[Record]:
    return _whole_files(files)


class TextReader(PlainReader[Text]):
  suffixes = ('.txt',)
  whole_files = True

  def records(self, files: Files) -> Iterable[Record]:
    return _whole_files(files)


class JsonlReader(PlainReader[Jsonl]):
  suffixes = JSONL

  def __init__(self, config: Jsonl):
    super().__init__(config)
    self.skips_bad = config.on_error == 'skip'

  def records(self, files: Files) -> Iterable[Record]:
    return formats.jsonl(files, functools.partial(formats.text_of_json, field=self.config.field))


class ParquetReader(PlainReader[Parquet]):
  suffixes = ('.parquet',)

  def records(self, files: Files) -> Iterable[Record]:
    return formats.parquet(files, self.config.field)


class ArrayRecordReader(PlainReader[ArrayRecord]):
  suffixes = ('.array_record', '.arrayrecord')

  def records(self, files: Files) -> Iterable[Record]:
    return formats.array_record(files)


class TokenFileReader(Reader[TokenFile]):
  suffixes = ('.bin',)

  def __init__(self, config: TokenFile):
    super().__init__(config)
    self.whole_files = config.separator is None

  def encoder(self) -> TokenEncoder:
    return TokenEncoder()

  def records(self, files: Files) -> Iterable[Record]:
    return formats.tokens(files, self.config.dtype, self.config.separator)


def _whole_files(files: Files) -> Iterator[Record]:
  for name, path in files.items():
    yield name, lambda path=path: formats.utf8_text(path.read_bytes(), str(path))
