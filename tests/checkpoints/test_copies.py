"""What several processes hold copies of is read from storage once."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from llm_jax.checkpoints import copies
from llm_jax.checkpoints.zarr_arrays import index_key
from llm_jax.config.experiment import Mesh
from llm_jax.sharding.mesh import make_mesh
from tests.checkpoints.copies_worker import SIDE

ROOT = Path(__file__).parents[2]
STATE_BYTES = 4 * 4 * SIDE * SIDE + 2 * SIDE * SIDE


@pytest.fixture(scope='module')
def two(tmp_path_factory) -> list[dict]:
  """What each of two processes of two devices said."""
  folder = tmp_path_factory.mktemp('copies') / 'stage'
  env = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
  env |= {'PYTHON': sys.executable, 'MODULE': 'tests.checkpoints.copies_worker', 'PYTHONPATH': str(ROOT),
          'DEVICES_PER_PROCESS': '2'}
  done = subprocess.run(['bash', str(ROOT / 'launch' / 'local.sh'), '2', str(folder)], env=env, text=True,
                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
  assert done.returncode == 0, done.stdout
  return [json.loads(said) for _, said in sorted(re.findall(r'^\[([01])\] (\{.*)$', done.stdout, re.MULTILINE))]


def test_two_processes_read_every_byte_once_together(two):
  assert [said['processes'] for said in two] == [2, 2]
  assert all(said['once_same'] and said['each_same'] for said in two)
  once, each = (sum(said[name] for said in two) for name in ('once', 'each'))
  assert once == pytest.approx(STATE_BYTES, rel=0.1)
  assert each == pytest.approx(2 * STATE_BYTES, rel=0.1)
  assert all(said['once'] == pytest.approx(STATE_BYTES / 2, rel=0.2) for said in two)  # and share the work


def test_both_hear_that_one_could_not_read(two):
  assert 'process 1 cannot read its part' in two[0]['lost']
  assert 'the disk is gone' in two[1]['lost']


class _Done:
  def __init__(self, value):
    self.value = value

  def result(self):
    return self.value


@pytest.mark.parametrize('spec, sizes', [
  (P('fsdp', 'tensor'), dict(data=2, fsdp=2, tensor=2)),
  (P(None, 'fsdp'), dict(data=2, fsdp=2, tensor=2)),
  (P(('fsdp', 'tensor'), None), dict(data=2, fsdp=2, tensor=2)),
  (P(), dict(data=8)),
  (P('fsdp', None), dict(fsdp=8)),
])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'int8'])
def test_each_shard_is_read_once_and_lies_on_all_devices(spec, sizes, dtype):
  mesh = make_mesh(Mesh(**sizes), jax.devices()[:8])
  whole = np.random.default_rng(0).integers(0, 256, (16, 8 * jnp.dtype(dtype).itemsize), dtype=np.uint8)
  whole = whole.view(jnp.dtype(dtype))
  sharding = NamedSharding(mesh, spec)
  leaf = jax.ShapeDtypeStruct(whole.shape, whole.dtype, sharding=sharding)
  read = []

  def open_(folder, name, leaf):
    def part(index):
      read.append(index)
      return _Done(whole[index])
    return part

  found = copies.read_once(Path(), {'a': leaf, 'b': leaf}, open_)
  distinct = len({index_key(shard.index) for shard in found['a'].addressable_shards})
  assert len(read) == 2 * distinct
  for array in found.values():
    assert array.sharding == sharding and len(array.addressable_shards) == 8
    for shard in array.addressable_shards:
      assert np.asarray(shard.data).tobytes() == whole[shard.index].tobytes()


def test_all_devices_take_part_in_reading():
  mesh = make_mesh(Mesh(data=4, fsdp=2), jax.devices()[:8])
  readers = {device for number in range(8)
             for device in copies.readers(NamedSharding(mesh, P('fsdp')), (16,), number)}
  assert len(readers) == 8
