"""Labelled texts to rows: several whole texts a row, the class of each at its last token."""
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from llm_jax.config.errors import require
from llm_jax.data.packing.text import BestFit, assemble
from llm_jax.data.token_store import TokenStore


class LabelledRows:
  """Rows of a store of labelled texts: `rows[i]` is {'text', 'labels'}, the fields of LabelledBatch.

  As many texts as fit share a row. One that is longer than a row is cut: of a pair the longer text loses its end until
  they are equally long, then both (GPT-1 keeps beginnings too).
  labels: the class of every text, int64. num_cut: texts that are cut. num_targets: of the language model.
  """

  def __init__(self, store: TokenStore, seq_len: int, seed: int | None, eot: int):
    self.store, self._context, self._eot = store, seq_len, eot
    special = int((store.counts[:store.offsets[1]] == 0).sum()) - 1
    require(seq_len >= 2 * special - 1, 'seq_len', seq_len, f'{special} special tokens and a token of each text do not fit: use '
            f'{2 * special - 1} or more')
    self.labels = np.array(store.tokens[store.offsets[1:] - 1], np.int64)
    inputs = np.diff(store.offsets) - 1  # the class is none
    kept = np.minimum(inputs, seq_len)
    self.num_cut, self.num_targets = int((inputs > seq_len).sum()), int((kept - 1).sum())
    lengths = np.concatenate([[0], np.cumsum(kept + 1)])  # best fit leaves out a document's last token by itself
    self.packing = BestFit(dataclasses.replace(store, offsets=lengths), seq_len, seed)

  def __len__(self) -> int:
    return self.packing.num_rows

  def __getitem__(self, row: int) -> dict[str, Any]:
    examples = [document for document, _, _ in self.packing.pieces(row)]
    texts = [self._ids(document) for document in examples]
    labels = np.full(self._context, -1, np.int32)
    labels[np.cumsum([len(ids) for ids in texts]) - 1] = self.labels[examples]
    share = lambda ids: np.full(len(ids), 1 / (len(ids) - 1), np.float32)
    return {'text': assemble([(ids, share(ids), len(ids)) for ids in texts], self._context, self._eot),
            'labels': labels}

  def documents(self, row: int) -> Iterator[np.ndarray]:
    """The ids of every text of a row, with its special tokens."""
    return (self._ids(document) for document, _, _ in self.packing.pieces(row))

  def _ids(self, document: int) -> np.ndarray:
    first, label = self.store.offsets[document:document + 2] - (0, 1)
    return cut(self.store.tokens[first:label], self.store.counts[first:label] == 0, self._context)


def cut(ids: np.ndarray, special: np.ndarray, length: int) -> np.ndarray:
  """At most `length` of the ids. special: which of them stand before, between and behind the one or two texts."""
  if len(ids) <= length:
    return ids
  places = np.flatnonzero(special)
  sizes, room = np.diff(places) - 1, length - len(places)
  second = min(sizes[1], max(room // 2, room - sizes[0])) if len(sizes) == 2 else 0
  keep = (room - second, second)
  parts = [ids[place:place + 1 + size] for place, size in zip(places, keep, strict=False)][:len(sizes)]
  return np.concatenate([*parts, ids[places[-1]:]])


def check_labels(parts: Sequence[LabelledRows], labels: Sequence[str]) -> None:
  """Refuses a class that no training text has: nothing would be learnt of it."""
  missing = tuple(label for i, label in enumerate(labels) if not any((part.labels == i).any() for part in parts))
  require(not missing, 'labels', missing, 'no training text has such a label: leave it out, or correct the data')
