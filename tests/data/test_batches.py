"""Sample i is the same row whatever the number of processes, threads and restarts."""
import dataclasses
import json

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm_jax.config import experiment as config
from llm_jax.config.errors import ConfigError
from llm_jax.config.ramp import make_phases
from llm_jax.data import dataset, token_store
from llm_jax.data.batch_source import DataPosition
from llm_jax.data.batches import Placement, RampSource, TrainSource, validation_batches
from tests.data.two_sources import BYTES, make_data, open_data, write_sources


def reread(position):
  """As a checkpoint gives it back."""
  return DataPosition.from_json(json.loads(json.dumps(position.to_json())))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return write_sources(tmp_path_factory.mktemp('data'))


def numpy_batches(source, count) -> list[dict[str, np.ndarray]]:
  batches = [{'tokens': np.asarray(source.next().tokens)} for _ in range(count)]
  source.close()
  return batches


def same(a, b) -> bool:
  return len(a) == len(b) and all(np.array_equal(x[field], y[field]) for x, y in zip(a, b, strict=True) for field in x)


def test_held_out_batches_are_padded_with_weight_zero(folder):
  data = open_data(folder, 'validation')
  batches = list(validation_batches(data, 7))
  assert len(batches) == -(-data.rows_per_epoch // 7) and data.rows_per_epoch % 7
  assert all(batch.tokens.shape == (7, 16) for batch in batches)
  assert sum(float(batch.weights.sum()) for batch in batches) == data.num_targets
  last = batches[-1]
  assert not last.weights[data.rows_per_epoch % 7:].any() and not last.segment_ids[data.rows_per_epoch % 7:].any()
  spread = list(validation_batches(data, 7, limit=2))
  assert len(spread) == 2 and np.array_equal(spread[1].tokens, batches[len(batches) // 2].tokens)


def test_batches_do_not_depend_on_prefetching(folder):
  data = open_data(folder)
  rows = [{'tokens': np.stack([data.row(k * 6 + r)['tokens'] for r in range(6)])} for k in range(20)]
  for options in ({}, {'prefetch': 0, 'threads': 0}, {'prefetch': 1, 'threads': 1}, {'prefetch': 50, 'threads': 8}):
    assert same(numpy_batches(TrainSource(data, 6, **options), 20), rows)
  assert same(numpy_batches(TrainSource(data, 6, start=18), 17), rows[3:])


def test_resumed_is_uninterrupted(folder):
  whole = numpy_batches(TrainSource(open_data(folder), 4), 40)
  parts, position = [], None
  for count in (1, 7, 0, 20, 12):
    source = TrainSource(open_data(folder), 4)
    if position:
      source.restore(position)
    parts += numpy_batches(source, count)
    position = reread(source.position())
  assert same(parts, whole) and position.samples == 160
  source.restore(dataclasses.replace(position, samples=8))  # also backwards, in a source that has run
  assert same(numpy_batches(source, 5), whole[2:7])


def test_a_ramp_gives_every_sample_once(folder):
  short, long = open_data(folder), open_data(folder, seq_len=32)
  make = lambda: RampSource([TrainSource(short, 4), TrainSource(short, 2, start=8),
                             TrainSource(long, 3, start=8)])  # no step is left for the second
  want = [*numpy_batches(TrainSource(short, 4), 2), *numpy_batches(TrainSource(long, 3, start=8), 3)]
  whole = make()
  assert same(numpy_batches(whole, 5), want) and whole.position().samples == 17
  for done in range(5):
    first, second = make(), make()
    assert same(numpy_batches(first, done), want[:done])
    second.restore(reread(first.position()))
    assert same(numpy_batches(second, 5 - done), want[done:])


def test_a_changed_component_is_named(folder, bpe, tmp_path, monkeypatch):
  old = TrainSource(open_data(folder), 4).position()
  (tmp_path / 'a.jsonl').write_bytes((folder / 'a.jsonl').read_bytes().replace(b'text 7', b'text 8'))
  (tmp_path / 'b.jsonl').write_bytes((folder / 'b.jsonl').read_bytes())
  changed = {
    'seed': (open_data(folder, seed=5), 4, "'5'.*made with 0"),
    'batch_size': (open_data(folder), 8, "'8'.*made with 4"),
    'seq_len': (open_data(folder, seq_len=32), 4, "'32'.*made with 16"),
    'packing': (open_data(folder, packing='best_fit'), 4, "'best_fit'.*made with concat"),
    'weights': (open_data(folder, weights=(0.5, 0.5)), 4, "'0.5, 0.5'.*made with 0.7, 0.3"),
    'tokenizer': (open_data(folder, tokenizer=bpe), 4, f'.{bpe.fingerprint}.*made with {BYTES.fingerprint}'),
    'data': (open_data(tmp_path), 4, '.Jsonl:.*made with Jsonl:'),
  }
  with monkeypatch.context() as another_version:
    another_version.setattr(token_store, 'FORMAT', 2)
    changed['formats'] = open_data(folder), 4, ".*'format': 2}.*made with {'format': 1}"
  assert changed.keys() == old.fingerprint.keys()
  for name, (data, batch_size, message) in changed.items():
    with pytest.raises(ConfigError, match=rf'^{name} = {message}'):
      TrainSource(data, batch_size).restore(old)
  with pytest.raises(ConfigError, match='^data = '):
    TrainSource(open_data(folder, val_fraction=0.3), 4).restore(old)
  with pytest.raises(ConfigError, match="^seed, batch_size = '5; 8'.*made with 0; 4"):
    TrainSource(open_data(folder, seed=5), 8).restore(old)


class OneProcess:
  """The part of a sharding that one process of several sees: it owns a slice of the devices."""

  def __init__(self, sharding: NamedSharding, devices: list):
    self._sharding, self._devices = sharding, devices

  def addressable_devices_indices_map(self, shape):
    return {d: i for d, i in self._sharding.devices_indices_map(shape).items() if d in self._devices}


@pytest.mark.parametrize('shape, spec', [((8, 1), ('x', None)), ((4, 2), ('x', None)), ((4, 2), ('x', 'y')),
                                         ((2, 4), (None, 'x'))])
@pytest.mark.parametrize('processes', [1, 2, 4])
def test_every_process_reads_only_its_rows(folder, shape, spec, processes):
  devices = jax.devices()[:8]
  sharding = NamedSharding(Mesh(np.array(devices).reshape(shape), ('x', 'y')), PartitionSpec(*spec))
  data, batch_size = open_data(folder), 8
  whole = numpy_batches(TrainSource(data, batch_size), 3)
  global_batches = TrainSource(data, batch_size, sharding)
  for k in range(3):
    batch = global_batches.next()
    assert batch.tokens.sharding == sharding and batch.tokens.dtype == np.int32 and batch.weights.dtype == np.float32
    assert np.array_equal(batch.tokens, whole[k]['tokens'])
    assert batch.sources.tolist() == [data.locate(k * batch_size + row)[0] for row in range(batch_size)]
  global_batches.close()
  each = len(devices) // processes
  for p in range(processes):
    local = OneProcess(sharding, devices[p * each:(p + 1) * each])
    placement = Placement(data, batch_size, local)
    needed = {row for index in local.addressable_devices_indices_map((8, 16)).values() for row in range(8)[index[0]]}
    assert placement.rows.tolist() == sorted(needed)
    if spec[0] and shape[0] == 8:
      assert len(needed) == batch_size // processes
    for k in range(3):
      assert np.array_equal(placement.read(k * batch_size)['tokens'], whole[k]['tokens'][sorted(needed)])


def test_a_scheduled_mixture_goes_on_after_any_step_on_any_number_of_processes(folder):
  """Weights that change over a ramp: opened anew after some steps, processes together read what one read that never
  stopped."""
  phases = make_phases(4, 16, 1, (config.Ramp(tokens=3 * 4 * 16, batch_size=8, seq_len=32),))
  data = make_data(folder, weights=(1.0, ((0, 0.0), (1, 3.0))))

  def open_phases():
    return [dataset.open_dataset(data, BYTES, seq_len=phase.seq_len, seed=0, split='train', steps=8, phases=phases,
                                  cache_dir=folder / 'cache') for phase in phases]

  def source_of(opened):
    return RampSource([TrainSource(data, phase.batch_size, start=phase.first_sample)
                       for data, phase in zip(opened, phases, strict=True)])

  whole = numpy_batches(source_of(open_phases()), 8)
  seen = [np.any((batch['tokens'] >= ord('A')) & (batch['tokens'] <= ord('Z')), axis=1).mean() for batch in whole]
  assert seen[0] < 0.5 < seen[-1]  # the second source, in upper case, comes in
  devices = jax.devices()[:8]
  sharding = NamedSharding(Mesh(np.array(devices).reshape(4, 2), ('x', 'y')), PartitionSpec('x', None))
  for done in (0, 2, 3, 5):  # after 3 it is ramped
    opened, late = open_phases(), done >= phases[1].first_step
    stopped, again = source_of(opened), source_of(opened)
    numpy_batches(stopped, done)
    position = reread(stopped.position())
    again.restore(position)
    assert same(numpy_batches(again, 8 - done), whole[done:])
    for processes in (1, 2, 4):
      read = {}
      for owned in np.split(np.array(devices), processes):
        placement = Placement(open_phases()[late], phases[late].batch_size, OneProcess(sharding, owned.tolist()))
        assert len(placement.rows) == phases[late].batch_size // processes
        read |= dict(zip(placement.rows.tolist(), placement.read(position.samples)['tokens'], strict=True))
      assert np.array_equal(np.stack([read[row] for row in sorted(read)]), whole[done]['tokens'])
