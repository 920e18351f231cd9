"""Bytes a parameter of full fine-tuning, for each way of storing parameters and optimizer state.

python -m benchmarks.state_memory [--chip h100]

A Llama of 30 million parameters, one row of 64 tokens, compiled and not run, for the CPU or for an accelerator that is
not there (install what benchmarks/accelerator_memory.py says). Printed, a parameter: what arithmetic gives for
parameters, optimizer state and gradient; what the state of the step takes; and the peak of the step by the compiler,
activations included.
"""
import argparse
import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.machine import machine
from benchmarks.records import write_results
from llm_jax.batch import LanguageModelBatch
from llm_jax.config import presets
from llm_jax.config.objectives import LanguageModel
from llm_jax.config.optimizers import Adafactor, AdamW, Lion, Muon, Optimizer
from llm_jax.config.schedules import Constant
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.language_model import LanguageModelObjective
from llm_jax.optim.optimizers import make_optimizer
from llm_jax.optim.schedules import make_schedule
from llm_jax.paths import map_named
from llm_jax.train import far
from llm_jax.train.build import store_param
from llm_jax.train.state import TrainState
from llm_jax.train.step import make_train_step

WIDTHS = {'float32': 4.0, 'bfloat16': 2.0, 'int8': 1 + 4 / 256}
MODEL = presets.llama(512, 8, 8, d_ff=1_536, vocab_size=4_096, tied_head=True)
ROWS, TOKENS = 1, 64


@dataclasses.dataclass(frozen=True)
class Chip:
  """What the steps are compiled for. backend: as jax names it.   device: the first one of its kind."""
  backend: str
  device: Callable[[], Any]


CHIPS = {
  'cpu': Chip('cpu', lambda: jax.devices()[0]),
  'h100': Chip('gpu', lambda: far.gpus(1)[0]),
  'v5e': Chip('tpu', lambda: far.tpus('v5e:2x2')[0]),
}


@dataclasses.dataclass(frozen=True)
class Choice:
  """parameters: how they are stored, as in `Stage`."""
  parameters: str
  optimizer: Optimizer

  @property
  def name(self) -> str:
    moments = getattr(self.optimizer, 'moments', None)
    stored_so = 'rows and columns' if moments is None else f'{moments} moments'
    return f'{self.parameters}, {type(self.optimizer).__name__}, {stored_so}'

  @property
  def arithmetic(self) -> float:
    """Bytes a parameter of a large matrix: itself, its moments, its gradient, which has its type."""
    match self.optimizer:
      case AdamW(moments=moments):
        state = 2 * WIDTHS[moments]
      case Lion(moments=moments) | Muon(moments=moments):
        state = WIDTHS[moments]
      case _:
        state = 0.0
    return 2 * WIDTHS[self.parameters] + state


def choices() -> Iterator[Choice]:
  for parameters in ('float32', 'bfloat16'):
    for moments in WIDTHS:
      yield Choice(parameters, AdamW(moments=moments))
    for optimizer in (Muon(moments='int8'), Lion(moments='int8'), Adafactor()):
      yield Choice(parameters, optimizer)


def measure(choice: Choice, chip: Chip) -> dict[str, float]:
  """Bytes a parameter."""
  model = Transformer(MODEL, Execution('float32' if chip.backend == 'cpu' else 'bfloat16', remat='block'))
  dtype_params = lambda params: map_named(lambda path, leaf: store_param(path, leaf, choice.parameters), params)
  init = lambda: dtype_params(model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params'])
  shapes = jax.eval_shape(init)
  optimizer = make_optimizer(choice.optimizer, shapes)
  state = jax.eval_shape(lambda: TrainState.create(init(), optimizer, ema=False))
  integers = jax.ShapeDtypeStruct((ROWS, TOKENS), jnp.int32)
  batch = LanguageModelBatch(integers, integers, jax.ShapeDtypeStruct((ROWS, TOKENS), jnp.float32), integers, integers)
  step = make_train_step(LanguageModelObjective(model, LanguageModel()), optimizer,
                         make_schedule(Constant(1e-4), 100), clip_norm=1.0)
  with far.as_backend(chip.backend):
    here = jax.sharding.SingleDeviceSharding(chip.device())
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
    state, batch = jax.tree.map(place, (state, batch))
    traced = jax.jit(step, donate_argnums=0).trace(state, None, batch)
    lowered = traced.lower(lowering_platforms=(far.PLATFORMS[chip.backend],))
    memory: Any = lowered.compile().memory_analysis()
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  new_outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
  peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes + new_outputs
  state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
  return {'arithmetic': choice.arithmetic, 'state': state_bytes / count, 'peak': peak / count}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--output', type=pathlib.Path, help='default: a new file in results/state_memory/')
  parser.add_argument('--chip', choices=list(CHIPS), default='cpu', help='what is compiled for')
  args = parser.parse_args()
  far.prepare()
  measured: dict[str, dict[str, float]] = {}
  print(f'{"bytes a parameter":45} {"arithmetic":>10} {"state":>8} {"peak":>8}')
  for choice in choices():
    found = measured[choice.name] = measure(choice, CHIPS[args.chip])
    print(f'{choice.name:45} {found["arithmetic"]:10.2f} {found["state"]:8.2f} {found["peak"]:8.2f}', flush=True)
  write_results('state_memory', {'machine': machine(), 'chip': args.chip, 'choices': measured}, args.output)


if __name__ == '__main__':
  main()
