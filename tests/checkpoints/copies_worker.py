"""What one of two real processes does in test_copies.py: saves a state, reads it back, and prints what it has read."""
import json
import sys
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from llm_jax.checkpoints import checkpoint as checkpoint_module
from llm_jax.checkpoints import copies
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.runtime import joining, processes
from llm_jax.runtime.errors import CheckpointError
from tests.checkpoints.checkpoint_states import make_metadata

SIDE = 1_024
COUNTER = '/tensorstore/kvstore/file/bytes_read'


def state_on(mesh):
  """Random bits: NaN and -0.0 among them, and nothing that can be compressed."""
  def place(seed, dtype, spec):
    words = np.random.default_rng(seed).integers(0, 2**32, (SIDE, SIDE), dtype=np.uint32)
    array = words.view(np.float32) if dtype == 'float32' else words.astype(np.uint16).view(jnp.bfloat16.dtype)
    return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda index: array[index])

  params = {f'w{i}': place(i, 'float32', P('fsdp', None)) for i in range(4)}
  small = jax.make_array_from_callback((8,), NamedSharding(mesh, P()), lambda index: np.arange(8.0)[index])
  return {'params': params, 'moments': {'m': place(9, 'bfloat16', P(None, 'fsdp'))}, 'scale': small}


def bits_of(array):
  return [np.asarray(shard.data).tobytes() for shard in array.addressable_shards]


def bytes_read():
  found = tensorstore.experimental_collect_matching_metrics(COUNTER)
  return sum(value.get('value', 0) for each in found for value in each['values'])


def main(folder):
  joining.join()
  mesh = jax.make_mesh((2, 2), ('data', 'fsdp'), axis_types=(AxisType.Auto, AxisType.Auto))
  said = {'processes': jax.process_count()}
  with jax.set_mesh(mesh):
    processes.connect_devices()
    state = state_on(mesh)
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
    with CheckpointStore(folder) as store:
      store.save(3, state, make_metadata(3), wait=True)
      saved = store.latest_valid()
      for name, has_copies in (('once', copies.has_copies), ('each', lambda leaf: False)):
        before = bytes_read()
        with mock.patch.object(checkpoint_module, 'has_copies', has_copies):
          read = saved.restore(abstract)
        said[name] = bytes_read() - before
        said[f'{name}_same'] = all(bits_of(a) == bits_of(b) for a, b in zip(
          jax.tree.leaves(state), jax.tree.leaves(read), strict=True))
      said['lost'] = lost(saved, abstract)
  print(json.dumps(said), flush=True)


def lost(saved, abstract):
  """What each process says where only one of them cannot read."""
  def broken(*_):
    raise OSError('the disk is gone')

  with mock.patch.object(copies, '_read_window', broken if jax.process_index() == 1 else copies._read_window):
    try:
      saved.restore(abstract)
    except CheckpointError as error:
      return str(error)


if __name__ == '__main__':
  main(Path(sys.argv[1]))
