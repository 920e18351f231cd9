"""How much memory the mean of eight checkpoints takes, in models; a script, because it reads its process's peak.

FOLDER is where two checkpoints are written: of a Llama of 13M parameters, 50 MiB, which is read eight times, and of a
tiny one.
"""
import pathlib
import sys

import jax
import jax.numpy as jnp

from llm_jax.checkpoints.average import average_params
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.config import presets
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from tests.checkpoints.checkpoint_states import make_metadata

ROOT = pathlib.Path(__file__).parents[2]
CHECKPOINTS = 8


def peak() -> int:
  """Bytes of the highest level of resident memory (Linux)."""
  status = pathlib.Path('/proc/self/status').read_text()
  return int(status.split('VmHWM:')[1].split()[0]) * 1024


def shapes(d_model: int, num_layers: int, vocab_size: int):
  model = Transformer(presets.llama(d_model=d_model, num_layers=num_layers, num_heads=4, vocab_size=vocab_size),
                      Execution(unroll=False))
  return jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 1), jnp.int32))['params']


def average(folder: pathlib.Path, abstract) -> None:
  jax.block_until_ready(average_params(CheckpointStore(folder).newest(1) * CHECKPOINTS, abstract))


if __name__ == '__main__':
  root, mode = pathlib.Path(sys.argv[1]), sys.argv[2]
  models = {'tiny': shapes(16, 1, 64), 'model': shapes(320, 6, 8_192)}
  if mode == 'write':
    for name, abstract in models.items():
      with CheckpointStore(root / name) as store:
        params = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(0), leaf.shape), abstract)
        store.save(1, {'params': params}, make_metadata(), wait=True)
  else:
    average(root / 'tiny', models['tiny'])  # what is loaded once
    pathlib.Path('/proc/self/clear_refs').write_text('5')  # the peak begins anew
    before, size = peak(), sum(leaf.size * 4 for leaf in jax.tree.leaves(models['model']))
    average(root / 'model', models['model'])
    print(f'{(peak() - before) / size:.3f} models of {size / 2**20:.1f} MiB')
