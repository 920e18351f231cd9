"""Rows to batches: what each process reads for itself, and where a run is in its data.

Sample i is the same row whatever the number of processes and threads.
"""
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from llm_jax.batch import Batch
from llm_jax.config.errors import require
from llm_jax.data.batch_source import BatchSource, DataPosition
from llm_jax.data.dataset import Dataset
from llm_jax.data.packing.rows import Fields


class TrainSource(BatchSource):
  """Batches of a training dataset: row r of batch k is sample `start + k batch_size + r`, on any number of processes.

  sharding: of [batch, time] arrays; a process assembles only the rows that its devices hold. None gives NumPy arrays.
  prefetch: how many batches are made ahead, by `threads` threads.
  """

  def __init__(self, dataset: Dataset, batch_size: int, sharding: jax.sharding.Sharding | None = None, start: int = 0,
               prefetch: int = 4, threads: int = 2):
    self._dataset = dataset
    self.batch_size = batch_size
    self._placement = Placement(dataset, batch_size, sharding)
    self._prefetch = prefetch
    self._threads = threads
    self._samples = start
    self._iterator = None

  def next(self, state: object = None, frozen: object = None) -> Batch:
    """The next batch. The arguments are for sources that ask the model; this one ignores them."""
    if self._iterator is None:
      import grain
      ahead: Any = _BatchesFrom(self._placement, self._samples)
      options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=self._prefetch)
      self._iterator = iter(grain.MapDataset.source(ahead).to_iter_dataset(options))
    batch = self._placement.place(next(self._iterator))
    self._samples += self.batch_size
    return batch

  def abstract(self) -> Batch:
    """The shapes, dtypes and sharding of a batch."""
    return self._placement.abstract()

  @property
  def fingerprint(self) -> dict[str, str]:
    return {**self._dataset.fingerprint, 'batch_size': str(self.batch_size)}

  def position(self) -> DataPosition:
    return DataPosition(self._samples, self.fingerprint)

  def restore(self, position: DataPosition, arrays: Mapping[str, Any] | None = None) -> None:
    """Goes on after `position`. Raises ConfigError where it belongs to other data, naming what changed, old and new."""
    check_same_data(position.fingerprint, self.fingerprint)
    self.close()
    self._samples = position.samples

  def close(self) -> None:
    """Stops the threads."""
    if self._iterator is not None:
      self._iterator.close()
      self._iterator = None


class RampSource(BatchSource):
  """Sources of several shapes one after the other: each gives the samples from its own start to that of the next.

  A sample's number says which source gives it, so that a position is one number here too.
  """

  def __init__(self, parts: Sequence[TrainSource]):
    self._parts = parts
    self._at = 0  # the part that gives the next batch
    self._starts = [part.position().samples for part in parts]

  def next(self, state: object = None, frozen: object = None) -> Batch:
    samples = self.position().samples
    while self._at + 1 < len(self._parts) and samples >= self._starts[self._at + 1]:
      self.close()
      self._at += 1
    return self._parts[self._at].next(state)

  @property
  def fingerprint(self) -> dict[str, str]:
    """Of all parts: where they differ, one after the other."""
    each = [part.fingerprint for part in self._parts]
    joined: dict[str, str] = {}
    for name in each[0]:
      different = dict.fromkeys(part[name] for part in each)
      joined[name] = ' then '.join(different)
    return {**joined, 'ramp': ', '.join(map(str, self._starts))}

  def position(self) -> DataPosition:
    return DataPosition(self._parts[self._at].position().samples, self.fingerprint)

  def restore(self, position: DataPosition, arrays: Mapping[str, Any] | None = None) -> None:
    check_same_data(position.fingerprint, self.fingerprint)
    self.close()
    self._at = max(i for i, start in enumerate(self._starts) if start <= position.samples)
    part = self._parts[self._at]
    part.restore(DataPosition(position.samples, part.fingerprint))

  def close(self) -> None:
    self._parts[self._at].close()


def check_same_data(old: dict[str, str], new: dict[str, str], prefix: str = '') -> None:
  """Raises ConfigError where a position belongs to other data, naming what changed, old and new. What the checkpoint
  of an older version did not note is taken to be as it is."""
  changed = [name for name in new if old.get(name, new[name]) != new[name]]
  require(not changed, ', '.join(prefix + name for name in changed), '; '.join(new[name] for name in changed),
          f'the checkpoint was made with {"; ".join(str(old.get(name)) for name in changed)}: '
          'set it back, or train in another workdir')


def validation_batches(dataset: Dataset, batch_size: int, sharding: jax.sharding.Sharding | None = None,
                     limit: int | None = None) -> Iterator[Batch]:
  """Batches of a held-out dataset in order, the last padded with weight 0; `limit` takes so many, spread over all."""
  placement = Placement(dataset, batch_size, sharding)
  count = -(-dataset.rows_per_epoch // batch_size)
  chosen = count if limit is None else min(limit, count)
  for k in range(chosen):
    yield placement.place(placement.read(k * count // chosen * batch_size))


class Placement:
  """Which rows of a batch this process reads, and how they become global arrays."""

  def __init__(self, dataset: Dataset, batch_size: int, sharding: jax.sharding.Sharding | None):
    self._dataset = dataset
    self._shape = (batch_size, dataset.seq_len)
    self._sharding = sharding
    self._padding = dataset.padding
    self.rows = np.array(self._held_rows())

  def _held_rows(self) -> list[int]:
    """The rows of a batch that this process's devices hold any part of."""
    batch_size = self._shape[0]
    if self._sharding is None:
      return list(range(batch_size))
    held: set[int] = set()
    for index in self._sharding.addressable_devices_indices_map(self._shape).values():
      if index is not None:
        held.update(range(*index[0].indices(batch_size)))
    return sorted(held)

  def read(self, start: int) -> Fields:
    """This process's rows of the batch whose first sample is `start`, each field [rows, seq_len]."""
    samples = start + self.rows
    return self._read(samples)

  def read_rows(self, samples: np.ndarray) -> Fields:
    """This process's rows of the batch of these samples."""
    return self._read(samples[self.rows])

  def _read(self, samples: np.ndarray) -> Fields:
    last = sys.maxsize if self._dataset.split == 'train' else self._dataset.rows_per_epoch
    rows = [self._dataset.row(int(i)) for i in samples[samples < last]]
    rows += [self._padding] * (len(samples) - len(rows))
    return jax.tree.map(lambda *fields: np.stack(fields), *rows)

  def abstract(self) -> Batch:
    return self._dataset.to_batch(jax.tree.map(
      lambda field: jax.ShapeDtypeStruct((self._shape[0], *field.shape), field.dtype, sharding=self._of(field.ndim)),
      self._padding))

  def place(self, fields: Fields) -> Batch:
    if self._sharding is None:
      return self._dataset.to_batch(fields)

    def put(local: np.ndarray) -> jax.Array:
      sharding: Any = self._of(local.ndim - 1)

      def part(index: Any) -> np.ndarray:
        first, stop, _ = index[0].indices(self._shape[0])
        begin = int(np.searchsorted(self.rows, first))
        return local[begin:begin + stop - first, *index[1:]]

      return jax.make_array_from_callback((self._shape[0], *local.shape[1:]), sharding, part)

    return self._dataset.to_batch(jax.tree.map(put, fields))

  def _of(self, ndim: int) -> jax.sharding.Sharding | None:
    """The sharding of a field whose rows have so many dimensions."""
    if not isinstance(self._sharding, jax.NamedSharding) or ndim == 1:
      return self._sharding
    return jax.NamedSharding(self._sharding.mesh, jax.P(*self._sharding.spec[:1 + ndim]))


class _BatchesFrom:
  """Random access to the batches after a sample, for grain's threads."""

  def __init__(self, placement: Placement, start: int):
    self._placement = placement
    self._start = start
    self._batch_size = placement._shape[0]

  def __len__(self) -> int:
    return (sys.maxsize - self._start) // self._batch_size

  def __getitem__(self, batch: int) -> Fields:
    return self._placement.read(self._start + batch * self._batch_size)
