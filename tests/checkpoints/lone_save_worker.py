"""One of two processes, of which the second cannot write its arrays; for test_processes.py."""
import resource
import sys
from pathlib import Path

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.runtime import joining
from llm_jax.runtime.errors import CheckpointError
from tests.checkpoints.checkpoint_states import make_metadata


def main(folder):
  joining.join()
  mesh = jax.sharding.Mesh(jax.devices(), ('data',), axis_types=(AxisType.Auto,))
  make = lambda: jax.random.normal(jax.random.key(0), (2, 1 << 19))
  w = jax.jit(make, out_shardings=NamedSharding(mesh, P('data')))()
  if jax.process_index() == 1:  # a limit on file size stands for a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
  store = CheckpointStore(folder)
  try:
    store.save(1, {'params': {'w': w}}, make_metadata(), wait=True)
  except CheckpointError as error:
    print(f'said: {error}', flush=True)
    sys.exit(1)


if __name__ == '__main__':
  main(Path(sys.argv[1]))
