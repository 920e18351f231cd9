"""Memory a device of a training step whose sequences are split over devices, on 1, 2, 4 and 8 virtual ones.

python -m benchmarks.context_memory [--seq_len 4096] [--layers 4]

A Llama-like decoder (width 256, 8 heads, 2 key/value heads, vocabulary 4,096, blocks rematerialised) and one sequence a
step, compiled and never run. 'one device' is the plain kernel, all scores of a layer at once; 'compiler' is it again
with time split over the devices and attention left to XLA's partitioner; 'gather' and 'ring' are the forms of
`modules/kernels/context_attention.py`, which hold the scores of a block of keys at a time. Activations are what XLA
plans for a device beside its arguments (temporaries) less one gradient, which no split of time makes smaller. Those on
n devices are compared with one device, and with the same form on two, of which they should be 2/n.
Virtual CPU devices are a rough proxy: XLA for TPU or GPU plans differently.
"""
import argparse
import os
import pathlib
from unittest import mock

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
VOCAB = 4_096


def temporaries(args, form, devices):
  """MiB a device, and MiB of the gradient."""
  import jax
  import numpy as np

  from llm_jax.batch import LanguageModelBatch
  from llm_jax.config import presets
  from llm_jax.config.optimizers import AdamW
  from llm_jax.config.run import Mesh
  from llm_jax.config.schedules import Constant
  from llm_jax.modules import transformer
  from llm_jax.modules.execution import Execution
  from llm_jax.objectives.language_model import LanguageModelObjective
  from llm_jax.optim.optimizers import make_optimizer
  from llm_jax.optim.schedules import make_schedule
  from llm_jax.sharding.context_split import WHOLE
  from llm_jax.sharding.mesh import make_mesh
  from llm_jax.sharding.rules import batch_sharding, replicated
  from llm_jax.train.state import TrainState
  from llm_jax.train.step import make_train_step

  config = presets.llama(256, args.layers, 8, 2, vocab_size=VOCAB)
  execution = Execution(kernels='xla', unroll=False, remat='block',
                        context_attention='ring' if form == 'ring' else 'gather')
  model = transformer.Transformer(config, execution)
  init = lambda: model.init(jax.random.key(0), np.zeros((1, 1), np.int32))['params']
  optimizer = make_optimizer(AdamW(), jax.eval_shape(init))
  mesh = make_mesh(Mesh(data=1, context=devices), jax.devices()[:devices])
  place = lambda shape, dtype, sharding: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
  state = jax.tree.map(lambda a: place(a.shape, a.dtype, replicated(mesh)),
                       jax.eval_shape(lambda: TrainState.create(init(), optimizer, ema=False)))
  batch = LanguageModelBatch(*(place((1, args.seq_len), dtype, batch_sharding(mesh))
                               for dtype in (np.int32, np.int32, np.float32, np.int32, np.int32)))
  step = jax.jit(make_train_step(LanguageModelObjective(model), optimizer, make_schedule(Constant(3e-4), 1_000)),
                 donate_argnums=0, out_shardings=(jax.tree.map(lambda a: a.sharding, state), replicated(mesh)))
  plain = mock.patch.object(transformer, 'context_split', lambda *_: WHOLE)
  with jax.set_mesh(mesh), plain if form == 'compiler' else mock.MagicMock():
    compiled = step.lower(state, None, batch).compile()
  gradient = sum(leaf.size * 4 for leaf in jax.tree.leaves(state.params))
  return compiled.memory_analysis().temp_size_in_bytes / 2**20, gradient / 2**20


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--seq_len', type=int, default=4_096)
  parser.add_argument('--layers', type=int, default=4)
  parser.add_argument('--output', type=pathlib.Path, help='default: a new file in benchmarks/results/context_memory/')
  args = parser.parse_args()

  from benchmarks.machine import machine
  from benchmarks.records import write_results
  one, gradient = temporaries(args, 'one device', 1)
  results = {'machine': machine(), 'seq_len': args.seq_len,
             'layers': args.layers, 'gradient_mib': gradient, 'one_device_activations_mib': one - gradient}
  print(f'gradient {gradient:.1f} MiB, activations on one device {one - gradient:.1f} MiB')
  for form in ('compiler', 'gather', 'ring'):
    results[form] = {}
    for devices in (2, 4, 8):
      got = temporaries(args, form, devices)[0] - gradient
      results[form][devices] = {'activations_mib': got}
      print(f'{form:9} {devices} devices: {got:7.1f} MiB of activations a device, 1/{(one - gradient) / got:.2f} of '
            f"one device, 1/{results[form][2]['activations_mib'] / got:.2f} of two", flush=True)
  write_results('context_memory', results, args.output)


if __name__ == '__main__':
  main()
