"""Memory a chip of a training step on TPU and GPU, by the form of attention.

pip install --no-deps --target=chips 'libtpu==0.0.42.*' 'jax-cuda12-plugin==0.10.2' 'jax-cuda12-pjrt==0.10.2'
PYTHONPATH=chips python -m benchmarks.accelerator_memory [--chips v5p h100] [--seq_lens 4096 8192 32768]

(For jax 0.10.2; 0.0.48.* and the plugin's own version for jax 0.11.2.) Compiled by the compilers for 16 TPU v5p and for
8 H100, which need none, and never run. Llama 3.1 8B, one sequence a chip, parameters and AdamW split over all of them
(fsdp), bfloat16, blocks rematerialised. 'plain' holds all scores of a layer at once; 'xla', the default on GPU, is the
same below 256 MiB of them, and goes over blocks of keys from there on; 'tpu', the default there, is the kernel in
`modules/kernels/flash_attention.py`. A step that does not fit is refused by the compiler, which says by how much.
"""
import argparse
import importlib.metadata
import os
import re
import time
from unittest import mock

from llm_jax.plan.h100 import H100

os.environ |= {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_gpu_autotune_level=0', 'TPU_SKIP_MDS_QUERY': '1',
               'TPU_ACCELERATOR_TYPE': 'v5litepod-4', 'TPU_WORKER_HOSTNAMES': 'localhost'}
GIB = 2**30
CHIPS = {  # what `topologies` asks for, and the backend's name
    'v5p': (dict(platform='tpu', topology_name='v5p:2x2x4'), 'tpu'),
    'h100': (dict(platform='cuda', topology_name='', topology='1x1x8', target_config=H100), 'gpu'),
}


def compile_step(devices, platform, seq_len, kernels):
  """The compiled training step."""
  import jax
  import numpy as np

  from llm_jax.batch import LanguageModelBatch
  from llm_jax.config import presets
  from llm_jax.config.optimizers import AdamW
  from llm_jax.config.run import Mesh
  from llm_jax.config.schedules import Constant
  from llm_jax.modules.execution import Execution
  from llm_jax.modules.transformer import Transformer
  from llm_jax.objectives.language_model import LanguageModelObjective
  from llm_jax.optim.optimizers import make_optimizer
  from llm_jax.optim.schedules import make_schedule
  from llm_jax.sharding.mesh import make_mesh
  from llm_jax.sharding.rules import batch_sharding, replicated, state_shardings
  from llm_jax.train.state import TrainState
  from llm_jax.train.step import make_train_step

  mesh = make_mesh(Mesh(fsdp=len(devices)), devices)
  model = Transformer(presets.llama3_1_8b(), Execution('bfloat16', remat='block', kernels=kernels))
  init = lambda: model.init(jax.random.key(0), np.zeros((1, 1), np.int32))['params']
  place = lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
  with jax.set_mesh(mesh):
    optimizer = make_optimizer(AdamW(), jax.eval_shape(init))
    state = jax.eval_shape(lambda: TrainState.create(init(), optimizer, ema=False))
    shardings = state_shardings(state, state.params, mesh)
    ids, weights = (np.zeros((len(devices), seq_len), dtype) for dtype in (np.int32, np.float32))
    batch = LanguageModelBatch(*(place(a, batch_sharding(mesh)) for a in (ids, ids, weights, ids, ids)))
    step = make_train_step(LanguageModelObjective(model), optimizer, make_schedule(Constant(3e-4), 1_000))
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
    traced = jitted.trace(jax.tree.map(place, state, shardings), None, batch)
    return traced.lower(lowering_platforms=(platform,)).compile()


def measure(chip, seq_lens):
  """{seq_len: {form: what was found}}."""
  import jax
  from jax.experimental import topologies

  from llm_jax.modules.kernels import attention
  described, backend = CHIPS[chip]
  devices, found = topologies.get_topology_desc(**described).devices, {}
  for seq_len in seq_lens:
    for form in ('plain', 'xla', 'tpu') if backend == 'tpu' else ('plain', 'xla'):
      begun, most = time.perf_counter(), 2**60 if form == 'plain' else attention.MOST_SCORES
      try:
        # The backend is what the code asks for before it chooses.
        with mock.patch('jax.default_backend', lambda: backend), mock.patch.object(attention, 'MOST_SCORES', most):
          step = compile_step(devices, described['platform'], seq_len, 'tpu' if form == 'tpu' else 'xla')
        memory = {'peak_gib': step.memory_analysis().peak_memory_in_bytes / GIB}
      except jax.errors.JaxRuntimeError as error:
        memory = {'refused': re.sub(r'\s+', ' ', str(error))[:300]}
      memory['compile_seconds'] = time.perf_counter() - begun
      found.setdefault(seq_len, {})[form] = memory
      shown = f'{memory["peak_gib"]:6.2f} GiB' if 'peak_gib' in memory else memory['refused']
      print(f'{chip:5} seq_len {seq_len:6}  {form:5}  {shown}  ({memory["compile_seconds"]:.0f} s)', flush=True)
  return found


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--chips', nargs='+', default=list(CHIPS), choices=list(CHIPS))
  parser.add_argument('--seq_lens', type=int, nargs='+', default=[4_096, 8_192, 32_768])
  args = parser.parse_args()

  import jax

  from benchmarks.machine import machine
  from benchmarks.records import write_results
  for chip in args.chips:
    write_results('accelerator_memory', {
      'machine': machine() | {'name': chip},
      'jax': jax.__version__,
      'compiler': importlib.metadata.version('libtpu' if chip == 'v5p' else 'jax-cuda12-pjrt'),
      'seq_lens': measure(chip, args.seq_lens),
    })


if __name__ == '__main__':
  main()
