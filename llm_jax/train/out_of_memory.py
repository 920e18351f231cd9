"""Out of memory, in one line: what a step takes by the plan, and which settings would save how much, the most first.

Of a stage with adapters there is no plan: what the backward pass keeps is traced.
"""
import contextlib
import dataclasses
import functools
import math
import re
import traceback
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import jax

from llm_jax.config.errors import ConfigError
from llm_jax.config.model.count import count_parameters
from llm_jax.config.stage import Stage
from llm_jax.objectives.frozen import Frozen
from llm_jax.plan.memory import Memory, step_memory
from llm_jax.plan.search import Knob, knobs, mildest, peak_of, together
from llm_jax.runtime.errors import is_out_of_memory, one_line
from llm_jax.sharding.check import row_shards
from llm_jax.sharding.rules import HOST, has_host_memory
from llm_jax.tracking.numbers import count, size
from llm_jax.train.build import make_trained_objective

if TYPE_CHECKING:
  from llm_jax.train.stage import BuiltStage

REASON_CHARACTERS = 200
MOST_KNOBS = 6
NUM_BYTES = re.compile(r'(\d{5,}) bytes')
# What compilers for TPUs say: `Used 31.50G of 15.75G hbm`, `HLO temporaries (40.00G) exceeds available HBM (15.75G)`.
USED_OF = re.compile(r'\(?([\d.]+)([KMGT])\)? (?:of|exceeds available HBM) \(?([\d.]+)([KMGT])\)?')
UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
# Functions that take much memory, and what they are doing.
DOING = {
  'run_stage': 'making or reading the state that it starts from',
  '_train_and_finish': 'training',
  'compile_step': 'compiling the step',
  'create': 'making parameters and optimizer state',
  'from_params': 'making the optimizer state',
  'restore': 'reading a checkpoint',
  'initial_params': 'reading the parameters that it starts from',
  'read': 'reading the state that it starts from',
  'run_at_start': 'evaluating',
  'run_at_step': 'evaluating',
  'run_at_end': 'evaluating',
  'save_checkpoint': 'saving a checkpoint',
  'train_loop': 'training',
}


class OutOfMemory(RuntimeError):
  """The memory of a device, or of the host, is too small. The message is one line with the settings that help."""


@contextlib.contextmanager
def naming_out_of_memory(built: 'BuiltStage') -> Generator[None]:
  """Raises OutOfMemory where the training of the stage inside runs out of memory."""
  try:
    yield
  except (RuntimeError, ValueError, MemoryError) as error:
    if is_out_of_memory(error):
      raise OutOfMemory(_message(built, error)) from error
    raise


def _message(built: 'BuiltStage', error: BaseException) -> str:
  reason = NUM_BYTES.sub(lambda found: f'{found[0]} ({size(int(found[1]))})', one_line(error)[:REASON_CHARACTERS])
  reason = reason.rstrip('.')
  text = f'out of memory in stage {built.stage.name}, {_doing(error)}: {reason}. '
  with contextlib.suppress(Exception):  # what only estimates must not hide what happened
    if built.stage.adapters is None:
      return text + planned(built, one_line(error))
  text += _state_text(built)
  with contextlib.suppress(Exception):
    text += _advice(built)
  return text


# ---------------------------------------------------------------------------------------------- by the plan
def planned(built: 'BuiltStage', error: str) -> str:
  """What the plan counts of the stage's fullest step, by category, and the settings that save most of it."""
  run, devices = built.session.run, built.session.mesh.size
  number = run.stages.index(built.stage)
  memory = fullest(built)
  wanted, capacity = of_capacity(error) or (memory.peak, capacity_of(built.session.mesh.devices.flat[0]))
  wanted = max(wanted, memory.peak)
  parts = ', '.join(f'{name} {size(taken)}' for name, taken in categories(memory))
  has = '' if capacity is None else f' of a device with {size(capacity)}'
  text = f'By the plan its fullest step takes {size(memory.peak)}{has}: {parts}'
  excess = None if capacity is None or wanted <= capacity else wanted - capacity
  allowed = functools.partial(is_allowed, has_host=has_host_memory(built.session.mesh.devices.flat[0]))
  possible = [knob for knob in knobs(run, number, devices) if allowed(knob)]
  found = mildest(possible, math.inf if excess is None else excess)
  is_enough = lambda saved: '' if excess is None or saved < excess else ', which is enough'
  advice = [f'{knob.flags} saves {size(knob.saved)}{is_enough(knob.saved)}' for knob in found[:MOST_KNOBS]]
  with contextlib.suppress(ConfigError):  # they have no rows for so many
    saved = memory.peak - on_twice_the_devices(built)
    fsdp = built.session.mesh.shape['fsdp']
    advice.append(f'--config.mesh.fsdp={2 * fsdp} on twice the devices saves {size(saved)}{is_enough(saved)}')
  if excess is not None and not any(knob.saved >= excess for knob in found):
    several = ' '.join(knob.flags for knob in together(run, number, devices, excess, allowed))
    advice.append(f'together {several} are enough' if several else 'no settings on these devices are enough')
  return f'{text}. {"; ".join(advice)}; or use a smaller model'


def fullest(built: 'BuiltStage') -> Memory:
  """The memory of the stage's fullest step, by the plan."""
  model = built.session.run.model_of(built.stage)
  sizes = dict(built.session.mesh.shape)
  pieces = built.session.run.mesh.pieces
  return max((step_memory(model, built.stage, phase, sizes, pieces) for phase in built.phases),
             key=lambda each: each.peak)


def on_twice_the_devices(built: 'BuiltStage') -> float:
  """Bytes of a device's peak where twice as many share the parameters."""
  run, sizes = built.session.run, dict(built.session.mesh.shape)
  sizes['fsdp'] *= 2
  wider = dataclasses.replace(run, mesh=dataclasses.replace(run.mesh, **sizes))
  return peak_of(wider, built.stage, 2 * built.session.mesh.size)


def categories(memory: Memory) -> Iterator[tuple[str, float]]:
  """(name, bytes) of what takes any."""
  names = {'optimizer': 'optimizer state', 'ema': 'moving average', 'block': 'the backward pass of one block',
           'loss': 'logits and their gradients (not beside the last)', 'frozen': 'reference model',
           'sampling': 'sampling (before the step)'}
  for field in dataclasses.fields(memory):
    taken = getattr(memory, field.name)
    if taken:
      yield names.get(field.name, field.name), taken


def of_capacity(error: str) -> tuple[float, float] | None:
  """(bytes that were wanted, bytes that there are), where the compiler says so."""
  found = USED_OF.search(error)
  if found is None:
    return None
  wanted, unit, capacity, other_unit = found.groups()
  return float(wanted) * UNITS[unit], float(capacity) * UNITS[other_unit]


def capacity_of(device: Any) -> float | None:
  """Bytes that the device gives to arrays; None where it does not say."""
  stats = device.memory_stats() or {}
  return stats.get('bytes_limit')


def is_allowed(knob: Knob, has_host: bool) -> bool:
  return has_host or knob.value != 'host'


# ---------------------------------------------------------------------------------------------- of adapters
def _doing(error: BaseException) -> str:
  names = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
  known = [DOING[name] for name in names if name in DOING]
  return known[-1] if known else 'training'


def _state_text(built: 'BuiltStage') -> str:
  parameters = count(count_parameters(built.session.run.model))
  return (f'On each device the {parameters} parameters with optimizer state and gradients take '
          f'{size(state_bytes(built))}')


def _advice(built: 'BuiltStage') -> str:
  number = built.session.run.stages.index(built.stage)
  activations = activation_bytes(built, built.stage)
  knobs: list[str] = []
  for field, changed in _alternatives(built):
    saved = activations - activation_bytes(built, changed)
    if saved > 0:
      value = getattr(changed, field)
      knobs.append(f'config.stages[{number}].{field}={value!r} saves about {size(saved)}')
  fsdp = built.session.mesh.shape['fsdp']
  knobs.append(f'config.mesh.fsdp={2 * fsdp} on twice the devices about {size(state_bytes(built) / 2)}')
  return (f', and what a step keeps for its backward pass, parameters included, about {size(activations)}: '
          f'{", ".join(knobs)}; or use a smaller model')


def _alternatives(built: 'BuiltStage') -> Iterator[tuple[str, Stage]]:
  """(field, the stage with another value of it) for what takes less memory and may be changed."""
  stage = built.stage
  if stage.remat != 'block':
    yield 'remat', dataclasses.replace(stage, remat='block')
  shards = row_shards(built.session.run.model, built.session.run.mesh, jax.device_count())
  more = 2 * stage.microbatches
  if stage.batch_size % (more * shards) == 0:
    yield 'microbatches', dataclasses.replace(stage, microbatches=more)


def state_bytes(built: 'BuiltStage') -> int:
  """Of parameters, averages, optimizer state and gradients on one device, and of what is frozen."""
  gradients = _bytes_on_a_device(built.abstract.params)
  return _bytes_on_a_device(built.abstract) + gradients + _bytes_on_a_device(built.starter.abstract_frozen)


def activation_bytes(built: 'BuiltStage', stage: Stage) -> int:
  """What the forward pass of one microbatch of the stage keeps for its backward pass, on one device: traced, and not
  computed. Parameters that the backward pass reads are counted too."""
  objective = make_trained_objective(stage, built.session.transformer(stage))
  longest = max(range(len(built.phases)), key=lambda i: built.phases[i].tokens)
  batch = jax.tree.map(lambda field: _rows(field, stage.microbatches), built.sources[longest].abstract())
  unplaced = lambda tree: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)

  def backward(params: Any, frozen: Frozen, batch: Any) -> Any:
    def total(params: Any) -> jax.Array:
      return objective(params, frozen, batch, jax.random.key(0), None).total
    return jax.vjp(total, params)[1]

  kept = jax.eval_shape(backward, unplaced(built.abstract.params), unplaced(built.starter.abstract_frozen), batch)
  return _bytes(kept) // built.session.mesh.size


def _rows(field: jax.ShapeDtypeStruct, microbatches: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((field.shape[0] // microbatches, *field.shape[1:]), field.dtype)


def _bytes(tree: Any) -> int:
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _bytes_on_a_device(tree: Any) -> int:
  on_device = [leaf for leaf in jax.tree.leaves(tree) if leaf.sharding.memory_kind != HOST]
  return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in on_device)
