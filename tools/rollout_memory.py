"""Memory of GRPO with LoRA and QLoRA, rollouts included, for one H100 or one TPU v5e that is not there.

pip install --no-deps --target=chips 'libtpu==0.0.42.*' 'jax-cuda12-plugin==0.10.2' 'jax-cuda12-pjrt==0.10.2'
PYTHONPATH=chips python -m tools.rollout_memory [--chips h100] [--cases llama3_2_1b:bfloat16 llama3_1_8b:nf4]

(For jax 0.10.2; see benchmarks/accelerator_memory.py for 0.11.2.) Every program of a rollout is compiled and never run:
the copy of the weights that answers are sampled with, adapters merged; the prompts' pass, which makes the cache; the
loop that samples; the log-probabilities; and the training step. Rank 16 in all matrices of the blocks, AdamW, bfloat16,
blocks rematerialised. Of each is printed what the compiler plans, and what else is on the chip then: the base and the
state of the training all the time, the copy while answers are sampled. What does not fit is refused by the compiler,
which says by how much.
"""
import argparse
import dataclasses
import re
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from tools.adapter_memory import CHIPS, GIB, num_bytes


@dataclasses.dataclass(frozen=True)
class Sizes:
  """answers: sampled at a time, 8 to a prompt.   rows: of a microbatch, each of `prompt` + `new` tokens.
  batch: rows of a step.
  """
  answers: int
  prompt: int
  new: int
  rows: int
  batch: int


class Models:
  """The shapes of all that a stage of GRPO with adapters holds, on one device."""

  def __init__(self, device: Any, architecture: Any, base: str):
    import jax
    import jax.numpy as jnp

    from llm_jax import paths
    from llm_jax.config.adapters import LoRA
    from llm_jax.config.optimizers import AdamW
    from llm_jax.config.run import Mesh
    from llm_jax.modules.execution import Execution
    from llm_jax.modules.low_rank import init_adapters
    from llm_jax.modules.parameters import parameter_shapes
    from llm_jax.modules.transformer import Transformer
    from llm_jax.modules.weight_storage import stored
    from llm_jax.optim.optimizers import make_optimizer
    from llm_jax.sharding.mesh import make_mesh
    from llm_jax.sharding.rules import param_shardings, state_shardings
    from llm_jax.train.rollout import DecodingCopy
    from llm_jax.train.state import TrainState
    self.mesh = make_mesh(Mesh(data=1), [device])
    self.architecture = architecture
    self.lora = LoRA(rank=16, alpha=32, base=base)
    self.execution = Execution('bfloat16', remat='block', unroll=False)
    self.model = Transformer(architecture, self.execution)
    full = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in parameter_shapes(architecture).items()}
    store = lambda leaves: paths.nest({path: stored(path, leaf, base) for path, leaf in leaves.items()})
    with jax.set_mesh(self.mesh):
      shapes = jax.eval_shape(store, full)
      self.base = jax.tree.map(self.placed, shapes, param_shardings(shapes, self.mesh))
      trained = jax.eval_shape(lambda base: init_adapters(base, self.lora, jax.random.key(0)), self.base)
      self.optimizer = make_optimizer(AdamW(), trained)
      state = jax.eval_shape(lambda trained: TrainState.create(trained, self.optimizer, ema=False), trained)
      self.state_shardings = state_shardings(state, state.params, self.mesh)
      self.state = jax.tree.map(self.placed, state, self.state_shardings)
      self.make_copy = DecodingCopy(self.lora, 'bfloat16', self.mesh)._make
      copy = jax.eval_shape(self.make_copy, self.state.params, self.frozen)
      self.copy = jax.tree.map(self.placed, copy, param_shardings(copy, self.mesh))

  @property
  def frozen(self) -> Any:
    from llm_jax.objectives.frozen import Frozen
    return Frozen(base=self.base)

  @staticmethod
  def placed(shape: Any, sharding: Any) -> Any:
    import jax
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

  def whole(self, shape: Any) -> Any:
    """The same on the device, not split."""
    from llm_jax.sharding.rules import replicated
    return self.placed(shape, replicated(self.mesh))


@dataclasses.dataclass(frozen=True)
class Program:
  """trace: makes the traced program.   beside: bytes on the chip that are no arguments of it."""
  name: str
  trace: Callable[[], Any]
  beside: int


def programs(models: Models, sizes: Sizes) -> Iterator[Program]:
  """Of one rollout and one step, in their order."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from llm_jax.batch import LanguageModelBatch, RolloutBatch
  from llm_jax.config.policy_gradients import grpo
  from llm_jax.config.schedules import Constant
  from llm_jax.decode import program
  from llm_jax.decode.sampling import Sampling
  from llm_jax.objectives.adapted import AdaptedObjective
  from llm_jax.objectives.policy_gradient import PolicyGradientObjective
  from llm_jax.optim.schedules import make_schedule
  from llm_jax.rollout.log_probs import _score
  from llm_jax.sharding.rules import batch_sharding, param_shardings, replicated
  from llm_jax.train.step import make_train_step
  base, state = num_bytes(models.base), num_bytes(models.state)
  moments = state - num_bytes(models.state.params)
  copied = jax.jit(models.make_copy, out_shardings=param_shardings(models.copy, models.mesh))
  yield Program('copy of the weights', lambda: copied.trace(models.state.params, models.frozen), moments)

  execution = dataclasses.replace(models.execution, remat='none')
  sampling = program.Program(models.architecture, execution, Sampling(1.0), (2,), log_probs=True)
  prompts = sizes.answers // 8
  shape = lambda shape, dtype: models.whole(jax.ShapeDtypeStruct(shape, dtype))
  key = models.whole(jax.eval_shape(lambda: jax.random.key(0)))
  given = (models.copy, key, shape((prompts, sizes.prompt), jnp.int32), shape((prompts,), jnp.int32))
  read = lambda: program.prefill.trace(sampling, *given, max_new=sizes.new, samples=8)
  yield Program('prompts', read, base + state)
  sampled = jax.tree.map(models.whole, jax.eval_shape(
    lambda *given: program.prefill(sampling, *given, max_new=sizes.new, samples=8), *given))
  yield Program('sampling', lambda: program.decode.trace(sampling, models.copy, key, sampled, shape((), jnp.int32)),
                base + state)

  sharding = batch_sharding(models.mesh)
  rows = lambda count: [models.placed(np.zeros((count, sizes.prompt + sizes.new), dtype), sharding)
                        for dtype in (np.int32, np.float32)]
  text = lambda ids, real: LanguageModelBatch(ids, ids, real, ids, ids)
  objective = AdaptedObjective.of(PolicyGradientObjective(models.model, grpo()), models.lora)
  scored = jax.jit(lambda trained, frozen, batch: _score(
    models.model, objective.whole(trained, frozen), batch, 1.0, True))
  yield Program('log-probabilities', lambda: scored.trace(models.state.params, models.frozen, text(*rows(sizes.rows))),
                moments)
  ids, real = rows(sizes.batch)
  step = make_train_step(objective, models.optimizer, make_schedule(Constant(1e-5), 1_000),
                         microbatches=sizes.batch // sizes.rows)
  jitted = jax.jit(step, donate_argnums=0, out_shardings=(models.state_shardings, replicated(models.mesh)))
  batch = RolloutBatch(text(ids, real), real, real)
  yield Program('training step', lambda: jitted.trace(models.state, models.frozen, batch), 0)


def measure(chip: str, case: str, sizes: Sizes) -> None:
  """Prints what was found of each program."""
  import jax
  from jax.experimental import topologies

  from llm_jax.config import presets
  described, backend = CHIPS[chip]
  device = topologies.get_topology_desc(**described).devices[0]
  name, _, base = case.partition(':')
  with mock.patch('jax.default_backend', lambda: backend):  # what the code asks for before it chooses
    models = Models(device, getattr(presets, name)(), base)
    print(f'{chip} {case}: base {num_bytes(models.base) / GIB:.2f} GiB, adapters and their moments '
          f'{num_bytes(models.state) / GIB:.2f}, copy for sampling {num_bytes(models.copy) / GIB:.2f}', flush=True)
    for program in programs(models, sizes):
      begun = time.perf_counter()
      try:
        with jax.set_mesh(models.mesh):
          compiled = program.trace().lower(lowering_platforms=(described['platform'],)).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None
        planned = analysis.peak_memory_in_bytes
        shown = (f'{(planned + program.beside) / GIB:6.2f} GiB: {planned / GIB:.2f} planned, of which arguments '
                 f'{analysis.argument_size_in_bytes / GIB:.2f}, and {program.beside / GIB:.2f} beside')
      except jax.errors.JaxRuntimeError as error:
        shown = re.sub(r'\s+', ' ', str(error))[:300]
      print(f'  {program.name:20} {shown}  ({time.perf_counter() - begun:.0f} s)', flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--chips', nargs='+', default=['h100'], choices=list(CHIPS))
  parser.add_argument('--cases', nargs='+', default=['llama3_2_1b:bfloat16', 'llama3_1_8b:nf4'],
                      help='a preset, and how LoRA stores the base')
  parser.add_argument('--answers', type=int, default=64, help='sampled at a time')
  parser.add_argument('--prompt', type=int, default=512)
  parser.add_argument('--new', type=int, default=512)
  parser.add_argument('--rows', type=int, default=4, help='of a microbatch, in training')
  parser.add_argument('--batch', type=int, default=64, help='rows of a step')
  args = parser.parse_args()
  sizes = Sizes(args.answers, args.prompt, args.new, args.rows, args.batch)
  for chip in args.chips:
    for case in args.cases:
      measure(chip, case, sizes)


if __name__ == '__main__':
  main()
