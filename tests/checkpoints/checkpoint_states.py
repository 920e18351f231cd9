"""Tiny training states, and a process that dies while it saves one (run as a script)."""
import sys
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from llm_jax.checkpoints.metadata import CheckpointMetadata, Lineage
from llm_jax.data.batch_source import DataPosition
from llm_jax.runtime.hardware import Machine
from llm_jax.runtime.lineage import RunLineage

RUN = RunLineage('0.2.0', 'command', '2025-01-01 00:00:00+0000', '0.2.0',
                 Machine('1 x cpu', 1, 2, 'Linux', '3.11', '0.10.2'), {})

@flax.struct.dataclass
class State:
  step: Any
  params: Any
  opt_state: Any
  ema: Any


def make_state(step: int, rows: int = 64) -> State:
  """Different bits for every step and leaf; float32, bfloat16, integers and an empty subtree."""
  random = np.random.default_rng(step)
  params = {'embedding': {'w': jnp.asarray(random.normal(size=(rows, 32)), jnp.float32)},
            'blocks': {'block_0': {'b': jnp.asarray(random.normal(size=(3, 16)), jnp.bfloat16)}}}
  return State(jnp.int32(step), params, optax.adamw(1e-3).init(params), None)


def make_metadata(samples: int = 0, **changes: Any) -> CheckpointMetadata:
  fields = {'config': {}, 'stage': 'a', 'final': False, 'tokenizer': 'sha256', 'lineage': Lineage(RUN, 'before/4'),
            'data': DataPosition(samples, {'data': 'sha256'}), **changes}
  return CheckpointMetadata(**fields)


def abstract(state: State) -> State:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same(a: Any, b: Any) -> None:
  """Same tree, types and bits."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype and x.shape == y.shape
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


if __name__ == '__main__':
  from pathlib import Path

  from llm_jax.checkpoints.store import CheckpointStore
  with CheckpointStore(Path(sys.argv[1]), keep=2) as store:
    for step in (10, 20, 30):
      store.save(step, make_state(step, rows=4096), make_metadata(step * 4))
