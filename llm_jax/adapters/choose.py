"""Which adapters a model needs on the device at hand, chosen before jax starts."""
import os
import shutil
import subprocess
import sys

from llm_jax.config.adapters import LoRA
from llm_jax.config.model.architecture import Architecture
from llm_jax.config.model.count import count_parameters, count_positions

GIB = 2**30
FULL, BFLOAT16, NF4 = 16.0, 2.0, 0.516  # bytes a parameter; float32 with its gradient and AdamW's two moments is 16
ROOM = 0.7  # of the memory, for all of them; the rest is for activations


def choose_adapters(model: Architecture, rank: int = 16, memory: float | None = None) -> LoRA | None:
  """None where all parameters can be trained on one device, else LoRA beside a bfloat16 base, else QLoRA. Prints one
  line with the arithmetic.

  memory: bytes of the device; None: those of the first GPU, or of the host where there is none.
  """
  memory = device_memory() if memory is None else memory
  count = count_parameters(model)
  num_tables = 1 if model.tied_head else 2
  tables = num_tables * model.vocab_size * model.d_model + count_positions(model)
  costs = {
    'all parameters': (FULL * count, None),
    'LoRA': (BFLOAT16 * count, LoRA(rank=rank, alpha=2.0 * rank, base='bfloat16')),
    'QLoRA': (NF4 * (count - tables) + BFLOAT16 * tables, LoRA(rank=rank, alpha=2.0 * rank, base='nf4')),
  }
  name = next((name for name, (cost, _) in costs.items() if cost <= ROOM * memory), 'QLoRA')
  others = ', '.join(f'{each} {cost / GIB:.1f} GiB' for each, (cost, _) in costs.items())
  print(f'{count / 1e9:.2f}B parameters, {memory / GIB:.1f} GiB of memory, of which {ROOM:.0%} for the model '
        f'({others}): {name}', file=sys.stderr)
  return costs[name][1]


def device_memory() -> float:
  """Bytes of the first GPU that `nvidia-smi` names, else of this host's memory."""
  if shutil.which('nvidia-smi') and os.environ.get('JAX_PLATFORMS') != 'cpu':
    asked = subprocess.run(['nvidia-smi', '--query-gpu=memory.total', '--format=csv,noheader,nounits'],
                           capture_output=True, text=True)
    lines = asked.stdout.split()
    if asked.returncode == 0 and lines:
      return float(lines[0]) * 2**20
  return float(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))
