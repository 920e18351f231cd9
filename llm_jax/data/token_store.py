"""Text tokenised once: ids of all documents in one memory-mapped file, built in parallel, resumed after a kill.

A store is a folder named by its fingerprint (source, split, tokenizer) under the cache folder:
  tokens     every document as `eot ids eot`, uint16 or uint32, little-endian
  documents  per document (tokens, bytes of text), int64 pairs
  counts     of dialogues: 1 for every token that is a target; of labelled texts: 1 for what is no mark; uint8
  meta.json  numbers and the sha256 of the files, written last

A dialogue is stored as its chat template writes it, with no `eot` around it; its bytes are those of the answers that
are learnt. A pair of answers is two documents, the chosen one first. A labelled text ends with its class.

While it is built it has another name, and a journal that gains a line after each batch of documents is safely on disk.
A process that finds such a folder goes on after the last batch whose checksum holds.
"""
import contextlib
import dataclasses
import fcntl
import itertools
import json
import logging
import os
import pathlib
import shutil
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np

from llm_jax.config.errors import ConfigError, require
from llm_jax.data import fingerprints
from llm_jax.data.sources import dialogues, documents, labelled
from llm_jax.data.tokenizers import chat_templates
from llm_jax.data.tokenizers.base import Tokenizer, bytes_per_token

FORMAT = 1  # raise it when the meaning of a store's files changes
BATCH_BYTES = 4 << 20  # text between two lines of the journal
PIECE_TOKENS = 1 << 24  # of a source that is tokenised already, copied at a time

Progress = Callable[[int, int], None]  # bytes of text done, and about how many in all


@dataclasses.dataclass(frozen=True)
class TokenStore:
  """tokens: [num_tokens] ids of all documents. offsets: [num_documents + 1], where each document begins.

  num_bytes: UTF-8 bytes of the text. skipped: how many bad rows were left out, by reason.
  counts: [num_tokens] uint8, 1 for a token that is a target; None where every token is.
  """
  tokens: np.ndarray
  offsets: np.ndarray
  num_bytes: int
  fingerprint: str
  skipped: dict[str, int]
  counts: np.ndarray | None = None

  @property
  def num_tokens(self) -> int:
    return int(self.offsets[-1])

  @property
  def num_documents(self) -> int:
    return len(self.offsets) - 1

  @property
  def num_targets(self) -> int:
    """Tokens that are predicted: not the first of a document, and of dialogues only those that count."""
    return self.num_tokens - self.num_documents if self.counts is None else int(self.counts.sum(dtype=np.int64))


def open_store(source: documents.DocumentSource, split: documents.Split, tokenizer: Tokenizer,
               cache_dir: str | os.PathLike | None = None, progress: Progress | None = None) -> TokenStore:
  """The store for a split of a source, built first where the cache has none, or a broken one.

  Of several processes that want the same store one builds it while the others wait. Raises ConfigError for bad rows,
  and where the split holds no text.
  """
  if source.chat:
    chat_templates.check_template(source.chat.template, tokenizer)
  if source.labelled:
    labelled.check_special_tokens(source.labelled, tokenizer)
  fingerprint = fingerprints.of({**formats(source), 'source': source.fingerprint, 'split': split,
                                 'val_fraction': source.val_fraction, 'tokenizer': tokenizer.fingerprint})
  folder = fingerprints.cache_folder(cache_dir) / 'tokens' / fingerprint[:32]
  store = _load(folder, fingerprint, cache_dir)
  if store is None:
    with _only_one(folder):
      store = _load(folder, fingerprint, cache_dir)  # another process may have built it meanwhile
      if store is None:
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
  return {'format': FORMAT, **({'chat': chat_templates.FORMAT} if source.chat else {}),
          **({'labelled': labelled.FORMAT} if source.labelled else {})}


@contextlib.contextmanager
def _only_one(folder: pathlib.Path) -> Iterator[None]:
  """Waits for its turn. The lock is the kernel's: it goes when its process does."""
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = open(folder.with_suffix('.lock'), 'w')
  except OSError as error:
    hint = f'not writable ({error.strerror}): set LLM_JAX_CACHE to a folder that is'
    raise ConfigError('cache_dir', str(folder.parent), hint) from error
  with lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def _load(folder: pathlib.Path, fingerprint: str, cache_dir: str | os.PathLike | None) -> TokenStore | None:
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
  documents = np.fromfile(folder / 'documents', '<i8').reshape(-1, 2)
  dtype = np.dtype(meta['dtype']).newbyteorder('<')
  tokens = np.memmap(folder / 'tokens', dtype, 'r') if len(documents) else np.zeros(0, dtype)
  offsets = np.concatenate([[0], np.cumsum(documents[:, 0])])
  counts = np.memmap(folder / 'counts', np.uint8, 'r') if 'counts' in meta['sha256'] and len(documents) else None
  return TokenStore(tokens, offsets, int(documents[:, 1].sum()), fingerprint, meta['skipped'], counts)


def _build(folder: pathlib.Path, source: documents.DocumentSource, split: documents.Split, tokenizer: Tokenizer,
           progress: Progress | None) -> None:
  building = folder.with_suffix('.building')
  building.mkdir(exist_ok=True)
  dtype = np.dtype('<u2' if tokenizer.vocab_size <= 1 << 16 else '<u4')
  dtypes = {'tokens': dtype, 'documents': np.dtype('<i8')}
  if source.chat or source.labelled:
    dtypes['counts'] = np.dtype(np.uint8)
  share = source.val_fraction if split == 'validation' else 1 - source.val_fraction
  with contextlib.ExitStack() as stack:
    files = {name: stack.enter_context(open(building / name, 'ab')) for name in dtypes}
    journal = stack.enter_context(open(building / 'journal', 'ab'))
    entry = _resume(building, files, journal)
    source.skipped.clear()
    source.skipped.update(entry['skipped'])
    readers = source.readers(split)
    next(itertools.islice(readers, entry['readers'], entry['readers']), None)  # what is stored is not read again
    for count, parts in _batches(source, readers, tokenizer):
      bodies = {name: b''.join(np.asarray(part, dtypes[name]).tobytes() for part in parts[name]) for name in files}
      for name, file in files.items():
        file.write(bodies[name])
        _sync(file)
      entry = {'readers': entry['readers'] + count,
               'bytes': entry['bytes'] + sum(size for _, size in parts['documents']),
               'ends': {name: file.tell() for name, file in files.items()}, 'skipped': dict(source.skipped),
               'checksum': {name: zlib.crc32(body) for name, body in bodies.items()}}
      journal.write(json.dumps(entry).encode() + b'\n')
      _sync(journal)
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
  if source.tokenised:
    yield from _tokenised(source, readers, tokenizer)
    return
  done = object()
  following = next(readers, done)
  while following is not done:
    documents, size, count = [], 0, 0
    while following is not done and size < BATCH_BYTES:
      document = source.read(following[1])
      count += 1
      if document:
        documents.append(document)
        size += sum(map(dialogues.length, document)) if source.chat else len(getattr(document, 'text', document))
      following = next(readers, done)
    if source.chat:
      yield count, _dialogue_parts(documents, source, tokenizer)
    elif source.labelled:
      yield count, _labelled_parts(documents, source, tokenizer)
    else:
      yield count, _text_parts(documents, tokenizer)


def _text_parts(texts: list[str], tokenizer: Tokenizer) -> Parts:
  eot, encoded = np.array([tokenizer.eot]), tokenizer.encode_batch(texts)
  return {'tokens': [part for ids in encoded for part in (eot, ids, eot)],
          'documents': [(len(ids) + 2, len(text.encode())) for ids, text in zip(encoded, texts, strict=True)]}


def _dialogue_parts(rows: list[tuple[dialogues.Dialogue, ...]], source: documents.DocumentSource,
                    tokenizer: Tokenizer) -> Parts:
  documents = [dialogue for row in rows for dialogue in row]
  encoded = [dialogues.encode(dialogue, source.chat, tokenizer) for dialogue in documents]
  sizes = [len(''.join(dialogue.answers).encode()) for dialogue in documents]
  return {'tokens': [ids for ids, _ in encoded], 'counts': [counts for _, counts in encoded],
          'documents': [(len(ids), size) for (ids, _), size in zip(encoded, sizes, strict=True)]}


def _labelled_parts(examples: list[labelled.Example], source: documents.DocumentSource, tokenizer: Tokenizer) -> Parts:
  encoded = labelled.encode(examples, source.labelled, tokenizer)
  sizes = [len(''.join(example.texts).encode()) for example in examples]
  return {'tokens': [ids for ids, _ in encoded], 'counts': [counts for _, counts in encoded],
          'documents': [(len(ids), size) for (ids, _), size in zip(encoded, sizes, strict=True)]}


def _tokenised(source: documents.DocumentSource, readers: Iterator[documents.Record],
               tokenizer: Tokenizer) -> Iterator[tuple[int, Parts]]:
  eot, widths = np.array([tokenizer.eot]), bytes_per_token(tokenizer)
  for _, reader in readers:
    ids, size, parts = source.read(reader), 0, [eot]
    for start in range(0, len(ids), PIECE_TOKENS):
      part = ids[start:start + PIECE_TOKENS]
      if part.max() >= tokenizer.vocab_size:
        raise ConfigError('path', int(part.max()), f'a token id beyond the vocabulary of {tokenizer.vocab_size}: '
                          'use the tokenizer that wrote the file, or the right dtype')
      parts.append(part)
      size += int(widths[part].sum(dtype=np.int64))
    yield 1, {'tokens': [*parts, eot] if len(ids) else [], 'documents': [(len(ids) + 2, size)] if len(ids) else []}


def _resume(building: pathlib.Path, files: dict[str, BinaryIO], journal: BinaryIO) -> dict:
  """The last journal entry whose batch is on disk as it was written; what comes after it is cut off."""
  entry, kept = {'readers': 0, 'bytes': 0, 'ends': dict.fromkeys(files, 0), 'skipped': {}}, 0
  with contextlib.ExitStack() as stack:
    stored = {name: stack.enter_context(open(building / name, 'rb')) for name in files}
    for line in (building / 'journal').read_bytes().splitlines(keepends=True):
      try:
        following = json.loads(line)
        checksum = {name: zlib.crc32(file.read(following['ends'][name] - entry['ends'][name]))
                    for name, file in stored.items()}
        if not line.endswith(b'\n') or checksum != following['checksum']:
          break
      except (ValueError, KeyError):
        break
      entry, kept = following, kept + len(line)
  for file, size in (*((file, entry['ends'][name]) for name, file in files.items()), (journal, kept)):
    file.truncate(size)
    file.seek(size)
  return entry


def _sync(file: BinaryIO) -> None:
  file.flush()
  os.fsync(file.fileno())
