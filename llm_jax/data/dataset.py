"""From a configuration to rows: sources, tokenised and packed, mixed and shuffled.

One number says where a run is: the global sample index. Sample i is the same row however often the run was restarted.
"""
import collections
import contextlib
import copy
import dataclasses
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from llm_jax.config.data import Data, Weighted
from llm_jax.config.errors import located
from llm_jax.config.ramp import Phase
from llm_jax.data import fingerprints, token_store
from llm_jax.data.mixture import AnyMixture, make_mixture
from llm_jax.data.packing.ramp import length_phases
from llm_jax.data.packing.rows import Fields, LengthStart, Rows, RowSettings
from llm_jax.data.sources import documents
from llm_jax.data.teacher_ids import TeacherIdStore
from llm_jax.data.tokenizers.base import Tokenizer, check_ids

ShowProgress = Callable[[], contextlib.AbstractContextManager[token_store.Progress | None]]
NOT_SHOWN: ShowProgress = contextlib.nullcontext


@dataclasses.dataclass(frozen=True)
class OpenedSource:
  """One source that has a part in a split.

  number: its place in the mixture.
  rows: of its documents in the split.
  """
  number: int
  weighted: Weighted
  documents: documents.DocumentSource
  rows: Rows


class Dataset:
  """Rows of one split of a mixture, all of one kind.

  fingerprint: what determines the rows, by component. num_tokens, num_targets (those with weight 1), num_bytes (UTF-8
  of the text that is learnt) and num_documents (as they are stored) count the split once.
  skipped: bad rows left out, by reason.
  names: of the mixture's sources; where there are several, every row has 'sources' too, the place in it of its own.
  """

  def __init__(self, opened: Sequence[OpenedSource], mixture: AnyMixture | None, tokenizer: Tokenizer,
               split: documents.Split, seq_len: int, seed: int, fingerprint: dict[str, str], names: tuple[str, ...]):
    self.split: documents.Split = split
    self.seq_len = seq_len
    self.fingerprint = fingerprint
    self.names = names
    self._opened = opened
    self._rows = [source.rows for source in opened]
    self._tokenizer = tokenizer
    self._mixture = mixture
    self._teacher_ids: TeacherIdStore | None = None
    stores = [rows.store for rows in self._rows]
    self.num_tokens = sum(store.num_tokens for store in stores)
    self.num_documents = sum(store.num_documents for store in stores)
    self.num_targets = sum(rows.num_targets for rows in self._rows)
    self.num_bytes = sum(store.num_bytes for store in stores)
    self.rows_per_epoch = sum(len(rows) for rows in self._rows)
    self.skipped = collections.Counter()
    for store in stores:
      self.skipped.update(store.skipped)
    if split == 'train':
      self._orders = [rows.order(_seed('rows', seed, i)) for i, rows in enumerate(self._rows)]
    else:
      self._ends = np.cumsum([len(rows) for rows in self._rows])

  def open(self) -> None:
    """Opens what rows are looked up in: before the first of them, when a stage begins."""
    for rows in self._rows:
      rows.open()

  def _of_training(self) -> AnyMixture:
    """What mixes the sources of a training split."""
    if self._mixture is None:
      raise ValueError(f'a {self.split} split is not mixed')
    return self._mixture

  def locate(self, sample: int) -> tuple[int, int]:
    """(source, row of that source) of a global sample.

    train: mixed by weight, every source shuffled anew each epoch, endless. validation: in order.
    """
    if self.split == 'train':
      source, count = self._of_training().locate(sample)
      return source, self._orders[source](count)
    if not 0 <= sample < self.rows_per_epoch:
      raise IndexError(f'row {sample} of {self.rows_per_epoch}')
    source = int(np.searchsorted(self._ends, sample, side='right'))
    return source, sample - (int(self._ends[source - 1]) if source else 0)

  def given(self, samples: int) -> dict[str, int]:
    """How many of a training split's first samples are from each source."""
    return dict(zip(self.parts, self._of_training().given(samples).tolist(), strict=True))

  @property
  def parts(self) -> dict[str, Rows]:
    """The rows of each source that has a part in the split, by its name."""
    return {self.names[source.number]: source.rows for source in self._opened}

  def row(self, sample: int) -> Fields:
    """The row of a global sample."""
    source, row = self.locate(sample)
    fields = self._with_source(self._rows[source][row], self._opened[source].number)
    return fields if self._teacher_ids is None else {**fields, 'teacher_ids': self._teacher_ids.of(source, row)}

  @property
  def padding(self) -> Fields:
    """A row without targets."""
    fields = self._with_source(self._rows[0].padding, 0)
    return fields if self._teacher_ids is None else {**fields, 'teacher_ids': self._teacher_ids.padding}

  def with_teacher_ids(self, ids: TeacherIdStore) -> 'Dataset':
    """The same rows with ids that a teacher has drawn for their targets."""
    dataset = copy.copy(self)
    dataset._teacher_ids = ids
    dataset.fingerprint = {**self.fingerprint, 'teacher_ids': ids.fingerprint}
    return dataset

  def to_batch(self, fields: Fields) -> Any:
    """The batch of several rows' fields."""
    return self._rows[0].to_batch(fields)

  @property
  def is_text(self) -> bool:
    """Whether every token of it is a target, so that its loss is one of the text's bytes."""
    return all(part.store.counts is None for part in self._rows)

  @property
  def known_scores(self) -> dict[str, float]:
    """Scores of the split that need no model, by name."""
    return self._rows[0].known_scores(self._rows)

  def _with_source(self, row: Fields, number: int) -> Fields:
    return {**row, 'sources': np.int32(number)} if len(self.names) > 1 else row

  @property
  def rows(self) -> Iterator[Fields]:
    """Every row of the split once, in the order of `row` for validation: all its tokens, each a target once."""
    for part in self._rows:
      for i in range(len(part)):
        yield part[i]

  def tokens_seen(self, samples: range) -> Iterator[np.ndarray]:
    """The ids in these samples, a piece of one document at a time, with the last target of each piece."""
    for sample in samples:
      source, row = self.locate(sample)
      for ids in self._rows[source].documents(row):
        yield np.array(ids)

  def token_documents(self) -> Iterator[np.ndarray]:
    """The ids of every document of the split, with those that the tokenizer puts around one; of a dialogue, those of
    its template."""
    for part in self._rows:
      for start, end in zip(part.store.offsets[:-1], part.store.offsets[1:], strict=True):
        yield np.array(part.store.tokens[start:end])

  def questions(self, count: int, longest: int) -> list[tuple[list[int], list[int]]]:
    """(prompt, answer) ids of up to `count` dialogues, spread over the split: all before the first answer that is
    learnt, at most `longest` ids, and that answer with what ends its turn."""
    fit = []
    for store in [part.store for part in self._rows if part.store.counts is not None]:
      for start, end in zip(store.offsets[:-1], store.offsets[1:], strict=True):
        counts = np.append(store.target_counts[start:end], 0)
        first = int(np.argmax(counts))
        if first <= longest:
          fit.append((store, start, start + first, start + first + int(np.argmin(counts[first:]))))
    chosen = [fit[i * len(fit) // count] for i in range(count)] if len(fit) > count else fit
    return [(store.tokens[a:b].tolist(), store.tokens[b:c].tolist()) for store, a, b, c in chosen]

  @property
  def haystack(self) -> token_store.TokenStore:
    """The tokens of its first source."""
    return self._rows[0].store

  @property
  def changed(self) -> bool:
    """Whether the text is no longer as it was when the dataset was opened; its tokens are."""
    return any(source.documents.changed() for source in self._opened)

  def changed_files(self) -> list[str]:
    """Paths of the files that no longer hold what they did when the dataset was opened."""
    return [file for source in self._opened for file in source.documents.changed_files()]

  def seen_in(self, trained: 'Dataset') -> list[str]:
    """What of this held-out split may be in the training split `trained`, one line for each two sources."""
    lines: list[str] = []
    for ours, theirs in itertools.product(self._opened, trained._opened):
      if theirs.documents.trains_on(ours.documents):
        lines.append(f'{self.names[ours.number]} (val_fraction={ours.documents.val_fraction}) holds out text of '
                     f'{trained.names[theirs.number]} (val_fraction={theirs.documents.val_fraction})')
    return lines

  def byte_documents(self) -> Iterator[bytes]:
    """The text that is learnt of every document of the split, in the order of `token_documents`."""
    for opened in self._opened:
      source = opened.documents
      for _, document in source.documents(self.split):
        yield from source.encoder.learnt_bytes(document, self._tokenizer)


def open_dataset(data: Data, tokenizer: Tokenizer, *, seq_len: int, seed: int, split: documents.Split,
                 steps: int = 1, phases: Sequence[Phase] = (), cache_dir: str | os.PathLike | None = None,
                 show_progress: ShowProgress = NOT_SHOWN, name: str = '',
                 vocab_size: int | None = None) -> Dataset | None:
  """Opens the sources, tokenises what the cache does not hold, and plans the rows.

  steps, phases: of the stage; they matter where a source's weight changes with the step, or the sequence length does.
  show_progress() is entered for each source, and gives what is called with the bytes of text that are tokenised, and
  how many there are. Sources with val_fraction=0 have no
  part in the validation split; None where that leaves none. Raises ConfigError naming the source and the file.
  What is cut or left out is counted in a warning, under `name`.
  vocab_size: rows of the model's embedding: text that uses a token without one is refused. None: not asked.
  """
  is_train = split == 'train'
  mixture = make_mixture(data.sources, steps, phases) if is_train else None
  opened: list[OpenedSource] = []
  for i, weighted in enumerate(data.sources):
    if split == 'validation' and not weighted.source.val_fraction:
      continue
    with located(f'data.sources[{i}].source'), show_progress() as progress:
      source = documents.open_source(weighted.source, cache_dir)
      store = token_store.open_store(source, split, tokenizer, cache_dir, progress)
      if vocab_size is not None:
        check_ids(store.tokens, tokenizer, vocab_size)
    settings = RowSettings(tokenizer, seq_len, data.packing, _seed('documents', seed, i) if is_train else None)
    rows = source.encoder.make_rows(store, settings)
    if mixture is not None:
      rows = _over_ramp(rows, i, mixture, phases, seed)
    opened.append(OpenedSource(i, weighted, source, rows))
    where = f'data.sources[{i}] ({split})'
    for warning in rows.warnings():
      logging.warning('%s: %s', f'{name}: {where}' if name else where, warning)
  if not opened:
    return None
  if is_train:
    with located('data.sources[0].source'):
      opened[0].rows.check([source.rows for source in opened], data.sources[0].source)
  fingerprint = {
    **_fingerprint(opened, steps),
    'packing': data.packing,
    'seq_len': str(seq_len),
    'seed': str(seed),
    'tokenizer': tokenizer.fingerprint,
  }
  return Dataset(opened, mixture, tokenizer, split, seq_len, seed, fingerprint, data.names)


def _over_ramp(rows: Rows, number: int, mixture: AnyMixture, phases: Sequence[Phase], seed: int) -> Rows:
  """The rows of a source's sequence length, where the stage has several such lengths: see `Rows.over_ramp`."""
  lengths = length_phases(phases)
  if len(lengths) < 2:
    return rows
  starts = [LengthStart(phase.seq_len, int(mixture.given(phase.first_sample)[number])) for phase in lengths]
  return rows.over_ramp(starts, _seed('rows', seed, number))


def _fingerprint(opened: Sequence[OpenedSource], steps: int) -> dict[str, str]:
  """What of the sources determines the rows, by component. A weight that changes does so over the stage's steps."""
  weights = [source.weighted.weight for source in opened]
  over = f' over {steps} steps' if any(isinstance(weight, tuple) for weight in weights) else ''
  texts = [f'{source.documents.kind}:{source.documents.fingerprint[:16]} '
           f'val_fraction={source.documents.val_fraction}' for source in opened]
  return {
    'data': ', '.join(texts),
    'weights': ', '.join(map(repr, weights)) + over,
    'formats': '; '.join(repr(token_store.formats(source.documents)) for source in opened),
  }


def training_texts(data: Data, cache_dir: str | os.PathLike | None = None) -> Iterator[str]:
  """Training text for a tokenizer: documents of all sources that hold text, each time of the one that is furthest
  behind its share of the bytes (by weight, the highest that it reaches), until all are used up."""
  unread = {}
  encoders = {}
  for i, weighted in enumerate(data.sources):
    with located(f'data.sources[{i}].source'):
      source = documents.open_source(weighted.source, cache_dir)
    if source.encoder.has_text:
      unread[i] = source.documents('train')
      encoders[i] = source.encoder
  given = dict.fromkeys(unread, 0)
  while unread:
    i = min(unread, key=lambda i: given[i] / data.sources[i].most)
    with located(f'data.sources[{i}].source'):
      found = next(unread[i], None)
    if found is None:
      del unread[i]
      continue
    text = encoders[i].text(found[1])
    given[i] += len(text)
    yield text


def _seed(purpose: str, seed: int, source: int) -> int:
  """A 32-bit seed of its own for every use, so that no two orders are alike."""
  return int(fingerprints.of([purpose, seed, source])[:8], 16)
