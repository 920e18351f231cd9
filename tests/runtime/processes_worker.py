"""What one of several real processes does in test_processes.py; prints one JSON object per line."""
import json
import os
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from llm_jax.checkpoints import saver, shared_hashing
from llm_jax.checkpoints.manifest import read_manifest
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.config.errors import require
from llm_jax.runtime import joining, processes
from llm_jax.runtime.errors import CheckpointError
from llm_jax.runtime.preemption import EXIT_PREEMPTED, Preempted, Preemption
from llm_jax.runtime.requests import Requests
from tests.checkpoints.checkpoint_states import make_metadata


def say(**values):
  print(json.dumps(values), flush=True)


def error_of(function, *args):
  try:
    return repr(function(*args))
  except Exception as error:  # its text is what the test looks at
    return f'{type(error).__name__}: {error}'


def broken():
  raise CheckpointError('manifest.json: damaged')


def make_state(step, mesh):
  """w is sharded over all devices of all processes, step is replicated."""
  w = jax.jit(lambda: jnp.arange(64.0).reshape(16, 4) + step, out_shardings=NamedSharding(mesh, P('data')))()
  return {'params': {'w': w}, 'step': jax.jit(lambda: jnp.int32(step), out_shardings=NamedSharding(mesh, P()))()}


def same(a, b):
  """Whether the shards here are bitwise equal."""
  return all((x.data == y.data).all().item() for x, y in zip(a['params']['w'].addressable_shards,
                                                             b['params']['w'].addressable_shards, strict=True))


def main(folder):
  preemption = Preemption(leave=lambda: say(left=True))
  peers = joining.join(connect=preemption.connect)
  Requests(preemption.request).start()
  rank = jax.process_index()
  say(processes=jax.process_count(), devices=jax.device_count())
  say(agree=error_of(processes.agree, 'config', 'same'), differ=error_of(processes.agree, 'config', f'rank {rank}'))
  say(on_first=processes.on_first(lambda: {'rank': rank, 'text': 'é'}),
      fails=error_of(processes.on_first, lambda: 1 // 0))
  say(config=error_of(processes.on_first, lambda: require(rank != 0, 'workdir', None, 'hint')),
      checkpoint=error_of(processes.on_first, broken))
  own = folder.parent / f'disk_of_{rank}'
  own.mkdir()
  processes.SHARED_SECONDS = 1
  say(shared=error_of(processes.check_shared, folder.parent), apart=error_of(processes.check_shared, own),
      left=[path.name for path in own.iterdir()])

  processes.PATIENT_SECONDS = 0.2
  time.sleep(2 * rank)
  processes.barrier('late')  # process 0 says on stderr for whom it waits
  processes.PATIENT_SECONDS = 60

  mesh = jax.sharding.Mesh(jax.devices(), ('data',), axis_types=(AxisType.Auto,))
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), make_state(0, mesh))
  warnings = []
  store = CheckpointStore(folder, keep=2, warn=warnings.append)
  say(empty=repr(store.latest_valid()))
  read = []
  original_read = shared_hashing.read_entries
  shared_hashing.read_entries = lambda folder, names, durable: read.append(names) or original_read(folder, names,
                                                                                                   durable)
  shared_hashing.MIN_BYTES = 0
  for step in (10, 20, 30):
    store.save(step, make_state(step, mesh), make_metadata(step))
  store.wait()
  say(read=read[-1], files=sorted(read_manifest(folder / '00000030').files))
  found = store.latest_valid()
  say(steps=store.steps(), found=found.step, samples=found.metadata.data.samples)
  say(same=same(found.restore(abstract), make_state(30, mesh)))

  if rank == 0:
    path = folder / '00000030' / 'state' / '_METADATA'
    path.write_bytes(path.read_bytes()[:-1])
  found = store.latest_valid()
  say(fallback=found.step, same_fallback=same(found.restore(abstract), make_state(20, mesh)), warned=len(warnings))

  original = saver.write_manifest
  saver.write_manifest = lambda *args: os.write(os.open('/dev/full', os.O_WRONLY), b'x')
  store.save(40, make_state(40, mesh), make_metadata())
  say(full=error_of(store.wait), after=store.latest_valid().step)
  saver.write_manifest = original

  try:
    with preemption.steps():
      for step in range(41, 1_000):
        if step == 44 and rank == 1:  # one is told, twice; all stop
          os.kill(os.getpid(), signal.SIGTERM)
          os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.02)
        processes.agree('step', str(step))
        if preemption.requested():
          break
  except Preempted:
    say(stopped=step)
  store.save(step, make_state(step, mesh), make_metadata(), wait=True)
  store.close()
  peers.close(EXIT_PREEMPTED)
  sys.exit(EXIT_PREEMPTED)


if __name__ == '__main__':
  main(Path(sys.argv[1]))
