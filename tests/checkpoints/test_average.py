"""The mean of checkpoints against float64 NumPy."""
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from llm_jax.checkpoints.average import average_params
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.runtime.errors import CheckpointError
from tests.checkpoints import averaging_memory
from tests.checkpoints import checkpoint_states as states


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  with CheckpointStore(tmp_path_factory.mktemp('checkpoints'), keep=5) as store:
    for step in (10, 20, 30):
      store.save(step, states.make_state(step), states.make_metadata(), wait=True)
    yield store


def test_float64_mean_on_a_mesh(store):
  """The newest two of three, rounded once from the float64 mean, on shards of eight devices."""
  mesh = jax.make_mesh((8,), ('fsdp',), axis_types=(jax.sharding.AxisType.Auto,))
  place = lambda x: NamedSharding(mesh, PartitionSpec('fsdp' if x.shape[0] % 8 == 0 else None))
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)),
                          states.make_state(0).params)
  got = average_params(store.newest(2), abstract)
  both = [states.make_state(step).params for step in (30, 20)]
  want = jax.tree.map(lambda a, b: ((np.asarray(a, np.float64) + np.asarray(b, np.float64)) / 2).astype(a.dtype), *both)
  states.assert_same(got, want)
  assert got['embedding']['w'].sharding == abstract['embedding']['w'].sharding


def test_weighted_mean_is_that_of_numpy(store):
  """Within one unit in the last place of NumPy's float64 average, for weights that are not powers of two."""
  weights = (0.1, 2.0, 0.7)
  all_three = [states.make_state(step).params for step in (30, 20, 10)]
  got = average_params(store.newest(3), states.abstract(all_three[0]), weights)
  for ours, *each in zip(*map(jax.tree.leaves, (got, *all_three)), strict=True):
    want = np.average([np.asarray(leaf, np.float64) for leaf in each], 0, weights).astype(ours.dtype)
    apart = np.abs(np.asarray(ours, np.float64) - want.astype(np.float64))
    assert (apart <= np.abs(want.astype(np.float64)) * float(jax.numpy.finfo(ours.dtype).eps)).all()
    assert (apart == 0).mean() > 0.99


@pytest.mark.parametrize('weights', [None, (0.1, 0.2, 0.3, 5.0, 1e-3, 7.0, 1 / 3)])
def test_equal_checkpoints_average_to_themselves(store, weights):
  [newest] = store.newest(1)
  params = states.make_state(30).params
  states.assert_same(average_params([newest] * 7, states.abstract(params), weights), params)


def test_copies_on_many_devices_are_summed_once(store):
  mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  params = states.make_state(30).params
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(
    mesh, PartitionSpec())), params)
  got = average_params(store.newest(1), abstract)
  states.assert_same(got, params)
  assert len(got['embedding']['w'].addressable_shards) == 8


def test_memory_is_below_two_models(tmp_path):
  """Eight checkpoints of 50 MiB, in a process of its own, in which glibc lets go of freed memory at once: what it keeps
  for later would be counted."""
  env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '', 'MALLOC_MMAP_THRESHOLD_': str(2**20)}
  for mode in ('write', 'measure'):
    command = [sys.executable, '-m', 'tests.checkpoints.averaging_memory', tmp_path, mode]
    done = subprocess.run(command, env=env, text=True, capture_output=True, timeout=300, cwd=averaging_memory.ROOT)
    assert done.returncode == 0, done.stderr
  models, size = done.stdout.split(' models of ')
  assert size.startswith('51.9 MiB') and 1 <= float(models) <= 2, done.stdout


def test_too_few_or_other_shapes_are_refused(store):
  with pytest.raises(CheckpointError, match='holds 3 checkpoints, 4 are to be averaged'):
    store.newest(4)
  abstract = states.abstract(states.make_state(0, rows=32).params)
  refused = r'params/embedding/w is float32\[64, 32\] in the checkpoint, float32\[32, 32\] here: only checkpoints'
  with pytest.raises(CheckpointError, match=refused):
    average_params(store.newest(2), abstract)
