"""The mean of checkpoints against float64 NumPy."""
import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from llm_jax.train.averaging import average_params
from llm_jax.train.checkpoint import CheckpointError, CheckpointStore
from tests.train import checkpoint_states as states


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  with CheckpointStore(tmp_path_factory.mktemp('checkpoints'), keep=5) as store:
    for step in (10, 20, 30):
      store.save(step, states.make_state(step), {}, wait=True)
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


def test_equal_checkpoints_average_to_themselves(store):
  [newest] = store.newest(1)
  params = states.make_state(30).params
  states.assert_same(average_params([newest] * 7, states.abstract(params)), params)


def test_too_few_or_other_shapes_are_refused(store):
  with pytest.raises(CheckpointError, match='holds 3 checkpoints, 4 are to be averaged'):
    store.newest(4)
  abstract = states.abstract(states.make_state(0, rows=32).params)
  with pytest.raises(CheckpointError, match=r'params/embedding/w is float32\[64, 32\] in the checkpoint'):
    average_params(store.newest(2), abstract)
