"""Text tokenised once: ids of all documents in one file, built in parallel, resumed after a kill.

A store is a folder named by its fingerprint (source, split, tokenizer) under the cache folder:
  tokens     every document between what the tokenizer puts around one, uint16 or uint32, little-endian
  documents  per document (tokens, bytes of text that is learnt), int64 pairs
  counts     where some tokens are no targets: 1 for every token that is one; uint8
  meta.json  numbers and the sha256 of the files, written last

The encoders of `llm_jax/data/packing/` say what is stored of a document that is no plain text.

While it is built it has another name, and a journal that gains a line after each batch of documents is safely on disk.
A process that finds such a folder goes on after the last batch whose checksum holds.
"""
import contextlib
import dataclasses
import itertools
import json
import logging
import os
import pathlib
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from llm_jax.config.errors import ConfigError, require
from llm_jax.data import fingerprints
from llm_jax.data.made_once import MAKE_ROOM, AnyArray, Arrays, CacheDir, made_once, only_one
from llm_jax.data.sources import documents
from llm_jax.data.tokenizers.base import Tokenizer
from llm_jax.runtime import activity
from llm_jax.runtime.array_file import ArrayFile
from llm_jax.runtime.errors import explaining_full_disk

FORMAT = 1  # raise it when the meaning of a store's files changes
BATCH_BYTES = 4 << 20  # text between two lines of the journal
DOCUMENT_BYTES = 16  # of the file `documents`, for each

Progress = Callable[[int, int], None]  # bytes of text done, and about how many in all


@dataclasses.dataclass(frozen=True)
class TokenStore:
  """tokens: [num_tokens] ids of all documents. offsets: [num_documents + 1], where each document begins.

  num_bytes: UTF-8 bytes of the text. skipped: how many bad rows were left out, by reason.
  counts: [num_tokens] uint8, 1 for a token that is a target; None where every token is.
  cache_dir: where what is made of the store is kept, as `fingerprints.cache_folder` takes it.
  """
  tokens: AnyArray
  offsets: AnyArray
  num_bytes: int
  fingerprint: str
  skipped: dict[str, int]
  counts: AnyArray | None = None
  cache_dir: CacheDir = None

  @property
  def num_tokens(self) -> int:
    return int(self.offsets[-1])

  @property
  def target_counts(self) -> AnyArray:
    """`counts` of documents that have some."""
    if self.counts is None:
      raise ValueError('every token of this store is a target')
    return self.counts

  @property
  def num_documents(self) -> int:
    return len(self.offsets) - 1

  @property
  def num_targets(self) -> int:
    """Tokens that are predicted: not the first of a document, and of dialogues only those that count."""
    return self.num_tokens - self.num_documents if self.counts is None else int(self.counts.sum(dtype=np.int64))


def open_store(source: documents.DocumentSource, split: documents.Split, tokenizer: Tokenizer,
               cache_dir: CacheDir = None, progress: Progress | None = None) -> TokenStore:
  """The store for a split of a source, built first where the cache has none, or a broken one.

  Of several processes that want the same store one builds it while the others wait. Raises ConfigError for bad rows,
  and where the split holds no text.
  """
  source.encoder.check(tokenizer)
  fingerprint = fingerprints.of({**formats(source), 'source': source.fingerprint, 'split': split,
                                 'val_fraction': source.val_fraction, 'tokenizer': tokenizer.fingerprint})
  folder = fingerprints.cache_folder(cache_dir) / 'tokens' / fingerprint[:32]
  store = _load(folder, fingerprint, cache_dir)
  if store is None:
    with only_one(folder):
      store = _load(folder, fingerprint, cache_dir)  # another process may have built it meanwhile
      if store is None:
        what = f'the tokens of {source.kind} ({split})'
        with explaining_full_disk(folder, what, MAKE_ROOM, _most_bytes(source, tokenizer)):
          _build(folder, source, split, tokenizer, progress)
        store = _load(folder, fingerprint, cache_dir)
  if store is None:
    raise OSError(f'the token store {folder} does not read back as it was written: check the disk')
  hint = (f'the {source.kind} leaves no text to train on: lower it, or name files with text' if split == 'train' else
          f'sets no text of the {source.kind} aside: raise it, add documents, or use 0 to leave it out of the score')
  require(store.num_documents > 0, 'val_fraction', source.val_fraction, hint)
  return store


def formats(source: documents.DocumentSource) -> dict[str, int]:
  """The versions of what writes the source's text out as tokens."""
  return {'format': FORMAT, **source.encoder.versions}


def _most_bytes(source: documents.DocumentSource, tokenizer: Tokenizer) -> int:
  """What a store takes where every byte of text becomes a token."""
  return int(source.num_bytes) * _token_dtype(tokenizer).itemsize


def _token_dtype(tokenizer: Tokenizer) -> np.dtype:
  return np.dtype('<u2' if tokenizer.vocab_size <= 1 << 16 else '<u4')


def _load(folder: pathlib.Path, fingerprint: str, cache_dir: CacheDir) -> TokenStore | None:
  """The store in `folder`, or None where there is none or a file of it is not as it was written."""
  try:
    saved = json.loads((folder / 'meta.json').read_bytes())
    meta = saved['meta']
    if fingerprints.of(meta) != saved['sha256']:
      raise ValueError('meta.json is damaged')
  except FileNotFoundError:
    return None
  except (OSError, ValueError, KeyError, TypeError) as error:
    logging.warning('token store %s: %r; tokenising again', folder, error)
    return None
  for name, sha256 in meta['sha256'].items():
    if not (folder / name).is_file() or fingerprints.of_file(folder / name, cache_dir) != sha256:
      logging.warning('token store %s: file %r is damaged; tokenising again', folder, name)
      return None
  num_documents = (folder / 'documents').stat().st_size // DOCUMENT_BYTES
  documents = made_once('offsets', {'store': fingerprint, 'documents': meta['sha256']['documents']}, num_documents,
                        lambda: _offsets(folder / 'documents'), cache_dir)
  has_counts = 'counts' in meta['sha256']
  dtype = np.dtype(meta['dtype']).newbyteorder('<')
  tokens = ArrayFile(folder / 'tokens', dtype) if num_documents else np.zeros(0, dtype)
  counts = ArrayFile(folder / 'counts', np.dtype(np.uint8)) if has_counts and num_documents else None
  return TokenStore(tokens, documents.arrays['offsets'], documents.numbers['num_bytes'], fingerprint, meta['skipped'],
                    counts, cache_dir)


def _offsets(path: pathlib.Path) -> Arrays:
  """Where each document begins, and how many bytes of text there are, by the file of (tokens, bytes) of each."""
  sizes = np.fromfile(path, '<i8').reshape(-1, 2)
  return Arrays({'offsets': np.concatenate([[0], np.cumsum(sizes[:, 0])])}, {'num_bytes': int(sizes[:, 1].sum())})


def _build(folder: pathlib.Path, source: documents.DocumentSource, split: documents.Split, tokenizer: Tokenizer,
           progress: Progress | None) -> None:
  building = folder.with_suffix('.building')
  building.mkdir(exist_ok=True)
  dtype = _token_dtype(tokenizer)
  dtypes = {'tokens': dtype, 'documents': np.dtype('<i8')}
  if source.encoder.has_counts:
    dtypes['counts'] = np.dtype(np.uint8)
  share = source.val_fraction if split == 'validation' else 1 - source.val_fraction
  with contextlib.ExitStack() as stack:
    files: dict[str, BinaryIO] = {name: stack.enter_context(open(building / name, 'ab')) for name in dtypes}
    journal = stack.enter_context(open(building / 'journal', 'ab'))
    entry = _resume(building, files, journal)
    source.skipped.clear()
    source.skipped.update(entry['skipped'])
    readers = source.readers(split)
    next(itertools.islice(readers, entry['readers'], entry['readers']), None)  # what is stored is not read again
    for count, parts in _batches(source, readers, tokenizer):
      bodies: dict[str, bytes] = {}
      for name, file in files.items():
        bodies[name] = b''.join(np.asarray(part, dtypes[name]).tobytes() for part in parts[name])
        file.write(bodies[name])
        _sync(file)
      entry = {
        'readers': entry['readers'] + count,
        'bytes': entry['bytes'] + sum(size for _, size in parts['documents']),
        'ends': {name: file.tell() for name, file in files.items()},
        'skipped': dict(source.skipped),
        'checksum': {name: zlib.crc32(body) for name, body in bodies.items()},
      }
      journal.write(_journal_line(entry))
      _sync(journal)
      activity.beat()
      if progress:
        progress(entry['bytes'], max(entry['bytes'], int(source.num_bytes * share)))
  if source.changed():
    shutil.rmtree(building)  # what it holds is not what its name says
    raise ConfigError('source', source.kind, 'a file of it changed while it was read: start again when it is complete')
  meta = {'dtype': dtype.name, 'skipped': entry['skipped'], 'bytes': entry['bytes'],
          'sha256': {name: fingerprints.of_file(building / name) for name in dtypes}}
  with open(building / 'meta.json', 'wb') as file:
    file.write(json.dumps({'meta': meta, 'sha256': fingerprints.of(meta)}).encode())
    _sync(file)
  shutil.rmtree(folder, ignore_errors=True)  # the broken store that this one replaces
  os.replace(building, folder)
  (folder / 'journal').unlink()


Parts = dict[str, list]  # what is appended to each file: arrays, and (tokens, bytes) per document


def _batches(source: documents.DocumentSource, readers: Iterator[documents.Record],
             tokenizer: Tokenizer) -> Iterator[tuple[int, Parts]]:
  """(documents read, what to append), each of about BATCH_BYTES of text."""
  count = 0
  size = 0
  batch: list[Any] = []
  for _, reader in readers:
    document = source.read(reader)
    count += 1
    if len(document):  # else it was bad, or holds nothing
      batch.append(document)
      size += source.encoder.length(document)
    if size >= BATCH_BYTES:
      yield count, _parts(source, batch, tokenizer)
      count = 0
      size = 0
      batch = []
  if count:
    yield count, _parts(source, batch, tokenizer)


def _parts(source: documents.DocumentSource, batch: list, tokenizer: Tokenizer) -> Parts:
  parts: Parts = {'tokens': [], 'documents': []}
  if source.encoder.has_counts:
    parts['counts'] = []
  for ids, num_bytes, counts in source.encoder.encode(batch, tokenizer):
    parts['tokens'] += ids
    parts['documents'].append((sum(map(len, ids)), num_bytes))
    if counts is not None:
      parts['counts'].append(counts)
  return parts


def _resume(building: pathlib.Path, files: dict[str, BinaryIO], journal: BinaryIO) -> dict:
  """The last journal entry whose batch is on disk as it was written; what comes after it is cut off."""
  entry = {'readers': 0, 'bytes': 0, 'ends': dict.fromkeys(files, 0), 'skipped': {}}
  kept = 0  # bytes of the journal
  with contextlib.ExitStack() as stack:
    stored = {name: stack.enter_context(open(building / name, 'rb')) for name in files}
    lines = (building / 'journal').read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
      is_torn = not line.endswith(b'\n')  # as a kill leaves the last one
      following = None if is_torn else _journal_entry(line)
      if following is None or not _is_stored(entry, following, stored):
        if not is_torn:
          logging.warning('%s, line %d: it, or what it tells of, is not as it was written; tokenising again from there',
                          building / 'journal', number)
        break
      entry = following
      kept += len(line)
  for name, file in files.items():
    _cut_off(file, entry['ends'][name])
  _cut_off(journal, kept)
  return entry


def _cut_off(file: BinaryIO, size: int) -> None:
  """Leaves the first `size` bytes; what is written next follows them."""
  file.truncate(size)
  file.seek(size)


def _journal_line(entry: dict[str, Any]) -> bytes:
  """A line of the journal: its checksum and the entry. A changed number in it would build another store."""
  body = json.dumps(entry).encode()
  return b'%08x %s\n' % (zlib.crc32(body), body)


def _journal_entry(line: bytes) -> dict[str, Any] | None:
  """The entry of a line; None where the line is not as it was written."""
  checksum, _, body = line.removesuffix(b'\n').partition(b' ')
  return json.loads(body) if checksum == b'%08x' % zlib.crc32(body) else None


def _is_stored(before: dict[str, Any], entry: dict[str, Any], stored: Mapping[str, BinaryIO]) -> bool:
  """Whether what was appended between two entries is in the files as it was written; reads on in them."""
  for name, file in stored.items():
    body = file.read(entry['ends'][name] - before['ends'][name])
    if zlib.crc32(body) != entry['checksum'][name]:
      return False
  return True


def _sync(file: BinaryIO) -> None:
  file.flush()
  os.fsync(file.fileno())
