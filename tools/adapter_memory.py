"""Memory of a training step with QLoRA, for one H100 and one TPU v5e that are not there.

pip install --no-deps --target=chips 'libtpu==0.0.42.*' 'jax-cuda12-plugin==0.10.2' 'jax-cuda12-pjrt==0.10.2'
PYTHONPATH=chips python -m tools.adapter_memory [--chips v5e h100] [--models llama3_2_1b llama3_2_3b llama3_1_8b]

(For jax 0.10.2; see benchmarks/accelerator_memory.py for 0.11.2.) Compiled and never run: rank 16 in all matrices of
the blocks, one sequence of 2,048 tokens, AdamW, bfloat16, blocks rematerialised. `frozen` is the base as it is stored.
What does not fit is refused by the compiler, which says by how much.

python -m tools.adapter_memory --here

runs three such steps of a model of 200 million parameters on this machine's CPU and measures the process: what it holds
once the base and the adapters are there, and the most that it has held during the steps.
"""
import argparse
import dataclasses
import math
import pathlib
import re
import time
from unittest import mock

from benchmarks.accelerator_memory import CHIPS, GIB

CHIPS = {
    'v5e': (dict(platform='tpu', topology_name='v5e:2x2', chips_per_host_bounds=(2, 2, 1)), 'tpu'),
    'h100': CHIPS['h100'],
}


def compile_step(device, platform, architecture, lora, seq_len):
  """The compiled step, and the shapes of the base."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from llm_jax import paths
  from llm_jax.batch import LanguageModelBatch
  from llm_jax.config.optimizers import AdamW
  from llm_jax.config.run import Mesh
  from llm_jax.config.schedules import Constant
  from llm_jax.modules.execution import Execution
  from llm_jax.modules.low_rank import init_adapters
  from llm_jax.modules.parameters import parameter_shapes
  from llm_jax.modules.transformer import Transformer
  from llm_jax.modules.weight_storage import stored
  from llm_jax.objectives.adapted import AdaptedObjective
  from llm_jax.objectives.frozen import Frozen
  from llm_jax.objectives.language_model import LanguageModelObjective
  from llm_jax.optim.optimizers import make_optimizer
  from llm_jax.optim.schedules import make_schedule
  from llm_jax.sharding.mesh import make_mesh
  from llm_jax.sharding.rules import batch_sharding, param_shardings, replicated, state_shardings
  from llm_jax.train.state import TrainState
  from llm_jax.train.step import make_train_step

  mesh = make_mesh(Mesh(data=1), [device])
  model = Transformer(architecture, Execution('bfloat16', remat='block', unroll=False))
  full = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in parameter_shapes(architecture).items()}
  store = lambda leaves: paths.nest({path: stored(path, leaf, lora.base) for path, leaf in leaves.items()})
  place = lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
  with jax.set_mesh(mesh):
    base = jax.eval_shape(store, full)
    base = jax.tree.map(place, base, param_shardings(base, mesh))
    trained = jax.eval_shape(lambda base: init_adapters(base, lora, jax.random.key(0)), base)
    optimizer = make_optimizer(AdamW(), trained)
    state = jax.eval_shape(lambda trained: TrainState.create(trained, optimizer, ema=False), trained)
    shardings = state_shardings(state, state.params, mesh)
    ids, weights = (np.zeros((1, seq_len), dtype) for dtype in (np.int32, np.float32))
    batch = LanguageModelBatch(*(place(a, batch_sharding(mesh)) for a in (ids, ids, weights, ids, ids)))
    objective = AdaptedObjective.of(LanguageModelObjective(model), lora)
    step = make_train_step(objective, optimizer, make_schedule(Constant(2e-4), 1_000))
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
    traced = jitted.trace(jax.tree.map(place, state, shardings), Frozen(base), batch)
    return traced.lower(lowering_platforms=(platform,)).compile(), base, state


def run_here(seq_len):
  """Prints the memory of this process while it trains a model of 200 million parameters."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from llm_jax import paths
  from llm_jax.batch import LanguageModelBatch
  from llm_jax.config import presets
  from llm_jax.config.adapters import LoRA
  from llm_jax.config.model.count import count_parameters
  from llm_jax.modules.low_rank import init_adapters
  from llm_jax.modules.parameters import parameter_shapes
  from llm_jax.modules.weight_storage import stored
  from llm_jax.objectives.frozen import Frozen

  lora = LoRA(rank=16, alpha=32, base='nf4')
  model = presets.llama(1_024, 14, 16, 4, 2_816, vocab_size=32_000, tied_head=True)
  step, base, state = compile_step(jax.devices()[0], 'cpu', model, lora, seq_len)
  rng = np.random.default_rng(0)
  before = resident()
  made = {}
  for path, shape in parameter_shapes(model).items():
    leaf = jnp.asarray(rng.standard_normal(shape, np.float32) * 0.02)
    made[path] = jax.block_until_ready(stored(path, leaf, lora.base))
  base = paths.nest(made)
  trained = init_adapters(base, lora, jax.random.key(0))
  state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
  state = dataclasses.replace(state, params=trained)
  ids = rng.integers(0, model.vocab_size, (1, seq_len), np.int32)
  places = np.arange(seq_len, dtype=np.int32)[None]
  batch = LanguageModelBatch(ids, ids, np.ones((1, seq_len), np.float32), places, np.ones((1, seq_len), np.int32))
  held = resident()
  pathlib.Path('/proc/self/clear_refs').write_text('5')  # the peak counts from here on
  for _ in range(3):
    state, metrics = step(state, Frozen(base), batch)
    jax.block_until_ready(metrics)
  built, peak = held - before, resident('VmHWM') - before
  print(f'cpu   {count_parameters(model) / 1e6:.0f}M parameters: base {num_bytes(base) / GIB:.3f} GiB, '
        f'{bytes_a_number(base):.3f} bytes a quantised number, state {num_bytes(state) / GIB:.3f} GiB; the process '
        f'grew by {built / GIB:.2f} GiB for them, and by at most {peak / GIB:.2f} GiB in steps')


def resident(field='VmRSS'):
  """Bytes of this process in memory, or with 'VmHWM' the most that there were."""
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith(f'{field}:'):
      return 1_024 * int(line.split()[1])
  raise LookupError(field)


def num_bytes(tree):
  import jax
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def bytes_a_number(base):
  """Of the quantised matrices."""
  import jax

  from llm_jax.modules.low_rank import full_shape
  from llm_jax.modules.quantized import is_quantized
  weights = [leaf for leaf in jax.tree.leaves(base, is_leaf=is_quantized) if is_quantized(leaf)]
  numbers = sum(math.prod(full_shape(weight, '')) for weight in weights)
  return num_bytes(weights) / numbers


def measure(chip, models, seq_len):
  """Prints what was found of each model."""
  import jax
  from jax.experimental import topologies

  from llm_jax.config import presets
  from llm_jax.config.adapters import LoRA
  described, backend = CHIPS[chip]
  device = topologies.get_topology_desc(**described).devices[0]
  lora = LoRA(rank=16, alpha=32, base='nf4')
  for name in models:
    begun = time.perf_counter()
    try:
      with mock.patch('jax.default_backend', lambda: backend):  # what the code asks for before it chooses
        step, base, state = compile_step(device, described['platform'], getattr(presets, name)(), lora, seq_len)
      analysis = step.memory_analysis()
      assert analysis is not None
      shown = (f'peak {analysis.peak_memory_in_bytes / GIB:.2f} GiB, frozen {num_bytes(base) / GIB:.2f} GiB, state '
               f'{num_bytes(state) / GIB:.2f} GiB, {bytes_a_number(base):.3f} bytes a quantised number')
    except jax.errors.JaxRuntimeError as error:
      shown = re.sub(r'\s+', ' ', str(error))[:300]
    print(f'{chip:5} {name:12} {shown}  ({time.perf_counter() - begun:.0f} s)', flush=True)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--chips', nargs='+', default=list(CHIPS), choices=list(CHIPS))
  parser.add_argument('--models', nargs='+', default=['llama3_2_1b', 'llama3_2_3b', 'llama3_1_8b'])
  parser.add_argument('--seq_len', type=int, default=2_048)
  parser.add_argument('--here', action='store_true', help='run a small model on this CPU and measure it')
  args = parser.parse_args()

  if args.here:
    run_here(args.seq_len)
    return
  for chip in args.chips:
    measure(chip, args.models, args.seq_len)


if __name__ == '__main__':
  main()
