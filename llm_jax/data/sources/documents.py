"""Where documents come from. A source lists its documents by key and reads each of them later, one at a time.

Documents are split into training and validation by a hash of their key, so that adding a file moves no other; a source
of one single text splits off its tail.
"""
import abc
import codecs
import collections
import dataclasses
import functools
import glob
import itertools
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Generic, Literal, TypeVar, cast

from llm_jax.config.errors import ConfigError, require
from llm_jax.config.implementation import load
from llm_jax.config.places import is_bucket
from llm_jax.config.source import SourceConfig
from llm_jax.config.sources import Source
from llm_jax.data import fingerprints
from llm_jax.data.sources.formats import Files
from llm_jax.runtime.buckets import BucketPath
from llm_jax.runtime.downloads import fetch, find
from llm_jax.runtime.files import stamp

Split = Literal['train', 'validation']
Record = tuple[str, Callable[[], Any]]  # a document's key, and what reads it
Config = TypeVar('Config', bound=SourceConfig)

JSONL = ('.jsonl', '.jsonl.gz', '.jsonl.zst')


@dataclasses.dataclass
class DocumentSource:
  """Documents of one source.

  kind: its name in messages. fingerprint: sha256 of names, contents and of what selects the text in them.
  files: by the names that begin the keys of their documents.
  encoder: an `llm_jax.data.packing.rows.Encoder` of its documents.
  records: a fresh pass over (key, read). changed: whether a file is not as it was when the fingerprint was taken.
  changed_files: which of them, by their paths, hold something else than then, are gone, or were added.
  num_bytes: size of the files, an estimate of the text.   whole_files: whether every file is one document.
  skips_bad: whether bad rows are left out.   skipped: how many the passes so far left out, by reason.
  """
  kind: str
  fingerprint: str
  files: Files
  val_fraction: float
  encoder: Any
  records: Callable[[], Iterable[Record]]
  changed: Callable[[], bool]
  changed_files: Callable[[], list[str]]
  num_bytes: int
  whole_files: bool = False
  skips_bad: bool = False
  skipped: collections.Counter = dataclasses.field(default_factory=collections.Counter)

  def readers(self, split: Split) -> Iterator[Record]:
    """(key, read) of a split's documents, in the order of the source; `read()` gives the document."""
    records = iter(self.records())
    first_two = list(itertools.islice(records, 2))
    if len(first_two) == 1 and self.encoder.is_divisible:
      [(key, read)] = first_two
      yield key, lambda: self._part(read(), split)
      return
    for key, read in itertools.chain(first_two, records):
      is_validation = fingerprints.unit_interval(key) < self.val_fraction
      if is_validation == (split == 'validation'):
        yield key, read

  def read(self, reader: Callable[[], Any]) -> Any:
    """The document, empty where it is bad and the source skips and counts such rows."""
    try:
      return reader()
    except ConfigError as error:
      if not self.skips_bad:
        raise
      self.skipped[error.hint.split(':')[0]] += 1
      return ''

  def documents(self, split: Split) -> Iterator[tuple[str, Any]]:
    """(key, document) of a split; empty documents are left out."""
    for key, reader in self.readers(split):
      document = self.read(reader)
      if len(document):
        yield key, document

  def trains_on(self, other: 'DocumentSource') -> bool:
    """Whether text that `other` sets aside may be training text of this one: a file of both, split in another way."""
    mine = {place: name for name, place in self.places.items()}
    shared = [(mine[place], name) for name, place in other.places.items() if place in mine]
    if not shared or other.val_fraction == 0:
      return False
    has_same_keys = all(a == b for a, b in shared) and self.splits_tail == other.splits_tail
    return not (has_same_keys and self.val_fraction >= other.val_fraction)

  @property
  def splits_tail(self) -> bool:
    """Whether it is one document, whose end is the validation split."""
    return self.whole_files and len(self.files) == 1

  @functools.cached_property  # every two sources of a run are compared, and a path is looked up folder by folder
  def places(self) -> dict[str, str]:
    """Where each file really is."""
    return {name: os.path.realpath(path) for name, path in self.files.items()}

  def _part(self, document: Any, split: Split) -> Any:
    """Of a single document the last `val_fraction` of its characters (or tokens), or those before."""
    boundary = int(len(document) * (1 - self.val_fraction))
    return document[:boundary] if split == 'train' else document[boundary:]


class Reader(abc.ABC, Generic[Config]):
  """Reads one type of source: `SourceConfig.implementation` names a subclass.

  A subclass says which files there are, which documents they hold, and how these are encoded.

  suffixes: of the files that are read, where the source has a `path`.
  whole_files: whether every file is one document.
  skips_bad: whether bad documents are left out and counted; else they are an error.
  """
  suffixes: ClassVar[tuple[str, ...]] = ()
  whole_files: bool = False
  skips_bad: bool = False

  def __init__(self, config: Config):
    self.config = config
    self.path: str = getattr(config, 'path', '')  # '': its files are found in another way

  @abc.abstractmethod
  def encoder(self) -> Any:
    """The `llm_jax.data.packing.rows.Encoder` of its documents."""

  @abc.abstractmethod
  def records(self, files: Files) -> Iterable[Record]:
    """(key, read) of every document in `files`. A key begins with the file's name. `read()` raises ConfigError, naming
    the row, for a bad one."""

  def find(self) -> Files:
    """{name: path} of the files to read."""
    return find_files(self.path, self.suffixes)

  def text_bytes(self, num_bytes: int) -> int:
    """About how many bytes of text files of so many bytes hold."""
    return num_bytes

  def selects(self) -> dict[str, Any]:
    """What decides, beside the files, which text is read of them: JSON values, part of the fingerprint."""
    fields = dataclasses.asdict(cast(Any, self.config))
    return {name: value for name, value in fields.items() if name not in ('path', 'val_fraction')}

  def open(self, cache_dir: str | os.PathLike | None = None) -> DocumentSource:
    """Finds and fingerprints the files. Documents are read later."""
    kind = type(self.config).__name__
    files = self.find()
    before = stamp(files)
    stamps = {name: stamp({name: path}) for name, path in files.items()}
    try:
      num_bytes = sum(path.stat().st_size for path in files.values())
      digests = fingerprints.of_each_file(files, cache_dir)
    except OSError as error:
      raise ConfigError('path', error.filename, f'cannot be read: {error.strerror}') from error
    require(num_bytes > 0, 'path', self.path or kind, 'every file is empty: name files with text')
    config: Any = self.config  # every source has a val_fraction
    content = fingerprints.of_digests(digests)
    return DocumentSource(
      kind=kind,
      fingerprint=fingerprints.of({'kind': kind, 'files': content, **self.selects(), **_left_out(files)}),
      files=files,
      val_fraction=config.val_fraction,
      encoder=self.encoder(),
      records=lambda: self.records(files),
      changed=lambda: stamp(files) != before,
      changed_files=lambda: self._changed_files(files, stamps, digests, cache_dir),
      num_bytes=self.text_bytes(num_bytes),
      whole_files=self.whole_files,
      skips_bad=self.skips_bad)

  def _changed_files(self, files: Files, stamps: dict[str, str], digests: dict[str, str],
                     cache_dir: str | os.PathLike | None) -> list[str]:
    """A file that was only touched has not changed: where a stamp differs, contents are compared."""
    try:
      now = self.find()
    except ConfigError:  # none is left
      return sorted(str(path) for path in files.values())
    touched = {name: path for name, path in now.items() if stamp({name: path}) != stamps.get(name)}
    try:
      contents = fingerprints.of_each_file(touched, cache_dir)
    except OSError:  # one has gone meanwhile
      contents = {}
    changed = [path for name, path in touched.items() if contents.get(name) != digests.get(name)]
    gone = [path for name, path in files.items() if name not in now]
    return sorted(str(path) for path in (*changed, *gone))


def _left_out(files: Files) -> dict[str, bool]:
  """Whether a text file begins with a byte order mark, which is left out: once it was stored as text."""
  found = False
  for path in files.values():
    if path.suffix == '.txt' and not found:
      with open(path, 'rb') as file:
        found = file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8
  return {'without_mark': True} if found else {}


def open_source(source: Source, cache_dir: str | os.PathLike | None = None) -> DocumentSource:
  """Finds and fingerprints the files of a source. Documents are read later, one at a time.

  Raises ConfigError for files that are missing, unreadable or of the wrong kind, naming them.
  """
  return load(source)(source).open(cache_dir)


def find_files(path: str, suffixes: tuple[str, ...]) -> Files:
  """{name: file} for a file, the files below a folder, or a glob. Names do not depend on where the folder is.
  What lies in a bucket is fetched into the cache folder."""
  if is_bucket(path):
    objects = find(BucketPath(path), suffixes)
    require(bool(objects), 'path', path, 'there is no such object, and none below it or that fits the pattern')
    return fetch(objects, fingerprints.cache_folder())
  if os.path.isfile(path):
    return {os.path.basename(path): pathlib.Path(path)}
  if os.path.isdir(path):
    root = pathlib.Path(path)
    found = [file for file in root.rglob('*') if file.name.endswith(suffixes) and file.is_file()]
    require(bool(found), 'path', path, f'the folder holds no file that ends with {" or ".join(suffixes)}')
  else:
    found = [pathlib.Path(file) for file in glob.glob(path, recursive=True) if os.path.isfile(file)]
    require(bool(found), 'path', path, 'no such file, folder or pattern')
    root = pathlib.Path(os.path.dirname(re.split(r'[*?[]', path)[0]))  # what they share may change with one more file
  return dict(sorted((file.relative_to(root).as_posix(), file) for file in found))
