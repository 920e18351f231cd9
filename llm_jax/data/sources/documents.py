"""Where documents come from. A source lists its documents by key and reads one only when asked to.

Documents are split into training and held-out text by a hash of their key, so that adding a file moves no other; a
source of one single text splits off its tail.
"""
import collections
import dataclasses
import functools
import glob
import itertools
import os
import pathlib
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import numpy as np

from llm_jax.config import experiment as config
from llm_jax.config.errors import ConfigError, require
from llm_jax.data import fingerprints
from llm_jax.data.sources import dialogues, formats, labelled, standard_library

Split = Literal['train', 'validation']
# Text; the ids of a source that is tokenised already; a conversation; the two answers to a prompt; texts and a class.
Content = str | np.ndarray | tuple[dialogues.Dialogue, ...] | labelled.Example
Record = tuple[str, Callable[[], Content]]

# Not the library's own code: tests, installed packages, the reference manual as one string (pydoc_data), and
# (_sysconfigdata) what the build of this machine wrote.
NOT_LIBRARY = {'test', 'tests', 'idle_test', 'site-packages', 'dist-packages', '__pycache__', 'pydoc_data'}


@dataclasses.dataclass
class DocumentSource:
  """Documents of one source.

  kind: its name in messages. fingerprint: sha256 of names, contents and of what selects the text in them.
  files: by the names that begin the keys of their documents.
  records: a fresh pass over (key, read). changed: whether a file is not as it was when the fingerprint was taken.
  num_bytes: size of the files, an estimate of the text.   whole: whether every file is one document.
  chat: the configuration of a source of dialogues, of which only what the assistant says is a target.
  labelled: the configuration of a source of texts with classes.
  skipped: how many bad rows the passes so far left out, by reason (only with on_error='skip').
  """
  kind: str
  fingerprint: str
  files: formats.Files
  val_fraction: float
  records: Callable[[], Iterable[Record]]
  changed: Callable[[], bool]
  num_bytes: int
  tokenised: bool = False
  whole: bool = False
  chat: config.Dialogues | None = None
  labelled: config.Labelled | None = None
  skip: bool = False
  skipped: collections.Counter = dataclasses.field(default_factory=collections.Counter)

  def readers(self, split: Split) -> Iterator[Record]:
    """(key, read) of a split's documents, in the order of the source; `read()` gives the document."""
    records = iter(self.records())
    first_two = list(itertools.islice(records, 2))
    if len(first_two) == 1 and self.chat is None and self.labelled is None:
      [(key, read)] = first_two
      yield key, lambda: self._part(read(), split)
      return
    for key, read in itertools.chain(first_two, records):
      if (fingerprints.unit_interval(key) < self.val_fraction) == (split == 'validation'):
        yield key, read

  def read(self, reader: Callable[[], Content]) -> Content:
    """The document, empty where it is bad and the source skips and counts such rows."""
    try:
      return reader()
    except ConfigError as error:
      if not self.skip:
        raise
      self.skipped[error.hint.split(':')[0]] += 1
      return ''

  def documents(self, split: Split) -> Iterator[tuple[str, Content]]:
    """(key, document) of a split; empty documents are left out."""
    for key, reader in self.readers(split):
      document = self.read(reader)
      if len(document):
        yield key, document

  def trains_on(self, other: 'DocumentSource') -> bool:
    """Whether text that `other` holds out may be training text of this one: a file of both, split in another way."""
    mine = {place: name for name, place in self.places.items()}
    shared = [(mine[place], name) for name, place in other.places.items() if place in mine]
    by_part = [source.whole and len(source.files) == 1 for source in (self, other)]
    alike = all(a == b for a, b in shared) and by_part[0] == by_part[1] and self.val_fraction >= other.val_fraction
    return bool(shared) and other.val_fraction > 0 and not alike

  @functools.cached_property  # every two sources of a run are compared, and a path is looked up folder by folder
  def places(self) -> dict[str, str]:
    """Where each file really is."""
    return {name: os.path.realpath(path) for name, path in self.files.items()}

  def _part(self, document: str | np.ndarray, split: Split) -> Content:
    """Of a single document the last `val_fraction` of its characters (or tokens), or those before."""
    boundary = int(len(document) * (1 - self.val_fraction))
    return document[:boundary] if split == 'train' else document[boundary:]


def open_source(source: config.Source, cache_dir: str | os.PathLike | None = None) -> DocumentSource:
  """Finds and fingerprints the files of a source. Documents are read later, one at a time.

  Raises ConfigError for files that are missing, unreadable or of the wrong kind, naming them.
  """
  kind = type(source).__name__
  if isinstance(source, config.NeedleTexts):
    haystack = open_source(source.haystack, cache_dir)
    return dataclasses.replace(haystack, kind=f'{kind} spacing={source.spacing} in {haystack.kind}')
  match source:
    case config.StandardLibrary():
      files, read = _standard_library(), _whole_files
    case config.Text(path):
      files, read = _find(path, ('.txt',)), _whole_files
    case config.Jsonl(path, field):
      parse = functools.partial(formats.text_of_json, field=field)
      files, read = _find(path, ('.jsonl', '.jsonl.gz')), lambda files: formats.jsonl(files, parse)
    case config.Conversations(path):
      parse = functools.partial(dialogues.read_conversation, source=source)
      files, read = _find(path, ('.jsonl', '.jsonl.gz')), lambda files: formats.jsonl(files, parse)
    case config.Preferences(path):
      parse = functools.partial(dialogues.read_preference, source=source)
      files, read = _find(path, ('.jsonl', '.jsonl.gz')), lambda files: formats.jsonl(files, parse)
    case config.StandardLibraryChats() | config.StandardLibraryPreferences():
      files, read = _standard_library(), lambda files: _library_dialogues(files, source)
    case config.LabelledJsonl(path):
      parse = functools.partial(labelled.read_example, source=source)
      files, read = _find(path, ('.jsonl', '.jsonl.gz')), lambda files: formats.jsonl(files, parse)
    case config.StandardLibraryFunctions(labels):
      files = {name: path for name, path in _standard_library().items() if name.split('/')[0] in labels}
      read = lambda files: labelled.library_functions(files, source)
    case config.Parquet(path, field):
      files, read = _find(path, ('.parquet',)), lambda files: formats.parquet(files, field)
    case config.ArrayRecord(path):
      files, read = _find(path, ('.array_record', '.arrayrecord')), formats.array_record
    case config.TokenFile(path, dtype, separator):
      files, read = _find(path, ('.bin',)), lambda files: formats.tokens(files, dtype, separator)
    case _:
      raise ConfigError('source', source, 'use StandardLibrary, Text, Jsonl, Parquet, ArrayRecord, TokenFile, '
                        'Conversations, Preferences, StandardLibraryChats, StandardLibraryPreferences, '
                        'LabelledJsonl or StandardLibraryFunctions')
  seen = _stamps(files)
  num_bytes = sum(size for _, size in seen)
  require(num_bytes > 0, 'path', getattr(source, 'path', kind), 'every file is empty: name files with text')
  selects = {key: value for key, value in dataclasses.asdict(source).items() if key not in ('path', 'val_fraction')}
  if isinstance(source, config.StandardLibraryChats | config.StandardLibraryPreferences):
    selects['format'], num_bytes = standard_library.FORMAT, num_bytes // standard_library.SHARE
  try:
    content = fingerprints.of_files(files, cache_dir)
  except OSError as error:
    raise ConfigError('path', error.filename, f'cannot be read: {error.strerror}') from error
  return DocumentSource(
    kind=kind, fingerprint=fingerprints.of({'kind': kind, 'files': content, **selects}), files=files,
    val_fraction=source.val_fraction, records=lambda: read(files), changed=lambda: _stamps(files) != seen,
    num_bytes=num_bytes, tokenised=kind == 'TokenFile',
    whole=read is _whole_files or kind == 'TokenFile' and source.separator is None,
    chat=source if isinstance(source, config.Dialogues) else None,
    labelled=source if isinstance(source, config.Labelled) else None,
    skip=kind == 'StandardLibrary' or getattr(source, 'on_error', 'fail') == 'skip')


def _find(path: str, suffixes: tuple[str, ...]) -> dict[str, pathlib.Path]:
  """{name: file} for a file, the files below a folder, or a glob. Names do not depend on where the folder is."""
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


def _stamps(files: dict[str, pathlib.Path]) -> list[tuple[int, int] | None]:
  """When each file was last changed, and its size."""
  def stamp(path: pathlib.Path) -> tuple[int, int] | None:
    try:
      stat = path.stat()
    except OSError:  # gone
      return None
    return stat.st_mtime_ns, stat.st_size
  return [stamp(path) for path in files.values()]


def _standard_library() -> dict[str, pathlib.Path]:
  """The running interpreter's own `.py` files."""
  root = pathlib.Path(sysconfig.get_paths()['stdlib'])
  found = {}
  for folder, folders, names in os.walk(root):
    folders[:] = [name for name in folders if name not in NOT_LIBRARY]
    for name in names:
      if name.endswith('.py') and not name.startswith('_sysconfigdata'):
        path = pathlib.Path(folder) / name
        found[path.relative_to(root).as_posix()] = path
  require(len(found) > 100, 'source', str(root), 'this Python was installed without its source code: use another one')
  return dict(sorted(found.items()))


def _library_dialogues(files: dict[str, pathlib.Path],
                       source: config.StandardLibraryChats | config.StandardLibraryPreferences) -> Iterator[Record]:
  """The key is the file's: its functions are in one split, that of the file itself."""
  match source:
    case config.StandardLibraryChats():
      make, found = dialogues.conversation, standard_library.conversations(files)
    case config.StandardLibraryPreferences():
      make, found = dialogues.preference, standard_library.preferences(files)
  for name, row in found:
    yield name, functools.partial(make, row, name, source)


def _whole_files(files: dict[str, pathlib.Path]) -> Iterator[Record]:
  for name, path in files.items():
    yield name, lambda path=path: formats.utf8_text(path.read_bytes(), str(path))
