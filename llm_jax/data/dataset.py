"""From a configuration to rows: sources, tokenised and packed, mixed and shuffled.

One number says where a run is: the global sample index. Sample i is the same row however often the run was restarted.
"""
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from llm_jax.config.data import Data
from llm_jax.config.errors import located
from llm_jax.config.ramp import Phase
from llm_jax.data import fingerprints, token_store
from llm_jax.data.mixture import AnyMixture, make_mixture
from llm_jax.data.packing.ramp import length_phases
from llm_jax.data.packing.rows import Fields, LengthStart, Rows, RowSettings
from llm_jax.data.sources import documents
from llm_jax.data.tokenizers.base import Tokenizer


class Dataset:
  """Rows of one split of a mixture, all of one kind.

  fingerprint: what determines the rows, by component. num_tokens, num_targets (those with weight 1), num_bytes (UTF-8
  of the text that is learnt) and num_documents (as they are stored) count the split once.
  skipped: bad rows left out, by reason.
  names: of the mixture's sources; where there are several, every row has 'sources' too, the place in it of its own.
  """

  def __init__(self, opened: Sequence[documents.DocumentSource], rows: Sequence[Rows],
               mixture: AnyMixture | None, tokenizer: Tokenizer, split: documents.Split, seq_len: int, seed: int,
               fingerprint: dict[str, str], names: tuple[str, ...], numbers: Sequence[int]):
    self.split: documents.Split = split
    self.seq_len, self.fingerprint, self.names, self._numbers = seq_len, fingerprint, names, numbers
    self._sources, self._rows, self._tokenizer = opened, rows, tokenizer
    stores = [part.store for part in rows]
    self.num_tokens = sum(store.num_tokens for store in stores)
    self.num_documents = sum(store.num_documents for store in stores)
    self.num_targets = sum(part.num_targets for part in rows)
    self.num_bytes = sum(store.num_bytes for store in stores)
    self.rows_per_epoch = sum(len(part) for part in rows)
    self.skipped = {reason: sum(store.skipped.get(reason, 0) for store in stores)
                    for store in stores for reason in store.skipped}
    self._mixture = mixture
    if split == 'train':
      self._orders = [part.order(_seed('rows', seed, i)) for i, part in enumerate(rows)]
    else:
      self._ends = np.cumsum([len(part) for part in rows])

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
    return {self.names[number]: rows for number, rows in zip(self._numbers, self._rows, strict=True)}

  def row(self, sample: int) -> Fields:
    """The row of a global sample."""
    source, row = self.locate(sample)
    return self._with_source(self._rows[source][row], self._numbers[source])

  @property
  def padding(self) -> Fields:
    """A row without targets."""
    return self._with_source(self._rows[0].padding, 0)

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
    return (part[i] for part in self._rows for i in range(len(part)))

  def tokens_seen(self, samples: range) -> Iterator[np.ndarray]:
    """The ids in these samples, a piece of one document at a time, with the last target of each piece."""
    for sample in samples:
      source, row = self.locate(sample)
      for ids in self._rows[source].documents(row):
        yield np.array(ids)

  def token_documents(self) -> Iterator[np.ndarray]:
    """The ids of every document of the split, `eot tokens eot`; of a dialogue, those of its template."""
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
    return any(source.changed() for source in self._sources)

  def seen_in(self, trained: 'Dataset') -> list[str]:
    """What of this held-out split may be in the training split `trained`, one line for each two sources."""
    return [f'{self.names[i]} (val_fraction={ours.val_fraction}) holds out text of {trained.names[k]} '
            f'(val_fraction={theirs.val_fraction})'
            for i, ours in zip(self._numbers, self._sources, strict=True)
            for k, theirs in zip(trained._numbers, trained._sources, strict=True) if theirs.trains_on(ours)]

  def byte_documents(self) -> Iterator[bytes]:
    """The text that is learnt of every document of the split, in the order of `token_documents`."""
    for source in self._sources:
      for _, document in source.documents(self.split):
        yield from source.encoder.learnt_bytes(document, self._tokenizer)


def open_dataset(data: Data, tokenizer: Tokenizer, *, seq_len: int, seed: int, split: documents.Split,
                 steps: int = 1, phases: Sequence[Phase] = (), cache_dir: str | os.PathLike | None = None,
                 progress: token_store.Progress | None = None, name: str = '') -> Dataset | None:
  """Opens the sources, tokenises what the cache does not hold, and plans the rows.

  steps, phases: of the stage; they matter where a source's weight changes with the step, or the sequence length does.
  progress(done, total) is called with bytes of text as each source is tokenised. Sources with val_fraction=0 have no
  part in the validation split; None where that leaves none. Raises ConfigError naming the source and the file.
  What is cut or left out is counted in a warning, under `name`.
  """
  opened, parts, used, numbers = [], [], [], []
  train = split == 'train'
  mixture = make_mixture(data.sources, steps, phases) if train else None
  lengths = length_phases(phases)
  for i, weighted in enumerate(data.sources):
    if split == 'validation' and not weighted.source.val_fraction:
      continue
    with located(f'data.sources[{i}].source'):
      source = documents.open_source(weighted.source, cache_dir)
      store = token_store.open_store(source, split, tokenizer, cache_dir, progress)
    settings = RowSettings(tokenizer, seq_len, data.packing, _seed('documents', seed, i) if train else None)
    part = source.encoder.make_rows(store, settings)
    if mixture is not None and len(lengths) > 1:
      starts = [LengthStart(phase.seq_len, int(mixture.given(phase.first_sample)[i])) for phase in lengths]
      part = part.over_ramp(starts, _seed('rows', seed, i))
    opened.append(source)
    parts.append(part)
    used.append(weighted)
    numbers.append(i)
    where = f'data.sources[{i}] ({split})'
    for warning in part.warnings():
      logging.warning('%s: %s', f'{name}: {where}' if name else where, warning)
  fingerprint = {
    'data': ', '.join(f'{source.kind}:{source.fingerprint[:16]} val_fraction={source.val_fraction}'
                      for source in opened),
    'weights': ', '.join(repr(part.weight) for part in used) + (
      f' over {steps} steps' if any(isinstance(part.weight, tuple) for part in used) else ''),
    'packing': data.packing, 'seq_len': str(seq_len), 'seed': str(seed),
    'tokenizer': tokenizer.fingerprint,
    'formats': '; '.join(repr(token_store.formats(source)) for source in opened)}
  if not opened:
    return None
  if train:
    with located('data.sources[0].source'):
      parts[0].check(parts, data.sources[0].source)
  return Dataset(opened, parts, mixture, tokenizer, split, seq_len, seed, fingerprint, data.names, numbers)


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
