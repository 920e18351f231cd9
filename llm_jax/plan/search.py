"""Other settings of a run: what each single one would save, and which mesh, remat and microbatches would be best."""
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llm_jax.config.errors import ConfigError
from llm_jax.config.optimizers import Adafactor, AdamW, Lion, Muon, Optax
from llm_jax.config.ramp import Phase
from llm_jax.config.run import Mesh, Run
from llm_jax.config.stage import Stage
from llm_jax.plan.memory import step_memory
from llm_jax.plan.roofline import Roofline, roofline
from llm_jax.plan.topology import Topology
from llm_jax.plan.traffic import step_traffic
from llm_jax.sharding.check import check_divides, mesh_sizes, row_shards

FULL_SHARE = 0.92  # of a device's memory that a step may plan for
LARGEST = {'tensor': 16, 'context': 16, 'pipeline': 16}  # of axes that cost most
REMATS = ('none', 'dots', 'block')


@dataclasses.dataclass(frozen=True)
class Knob:
  """One change of a configuration. field: its path.   saved: bytes of a device's peak.
  data: where it is an axis of the mesh that takes its devices from `data`: what is left there; None: not named."""
  field: str
  value: object
  saved: float
  data: int | None = None

  @property
  def flags(self) -> str:
    """What sets it on a command line."""
    others = '' if self.data is None else f'--config.mesh.data={self.data} '
    return f'{others}--{self.field}={self.value}'


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A way to run a stage. peak: bytes of a device.   sent: by a device in a step."""
  mesh: Mesh
  remat: str
  microbatches: int
  peak: float
  sent: float
  roofline: Roofline

  def flags(self, number: int) -> str:
    """What sets it on a command line. number: of the stage."""
    axes = [f'--config.mesh.{axis}={size}' for axis, size in self.mesh.sizes.items()]
    stage = f'--config.stages[{number}]'
    return ' '.join([*axes, f'{stage}.remat={self.remat}', f'{stage}.microbatches={self.microbatches}'])


# ---------------------------------------------------------------------------------------------- one change
def knobs(run: Run, number: int, devices: int) -> list[Knob]:
  """What saves memory in stage `number`, the most first. What the mesh or the batch does not allow is left out."""
  return [knob for knob, _ in _changes(run, number, devices)]


def mildest(found: Sequence[Knob], excess: float) -> list[Knob]:
  """One knob for each field, the one that saves most first: of its values the one that saves least of those that save
  `excess` bytes, else the one that saves most."""
  by_field: dict[str, Knob] = {}
  for knob in found:  # from the most to the least
    if knob.field not in by_field or knob.saved >= excess:
      by_field[knob.field] = knob
  return sorted(by_field.values(), key=lambda knob: -knob.saved)


def together(run: Run, number: int, devices: int, excess: float, allowed: Callable[[Knob], bool] = lambda knob: True
             ) -> list[Knob]:
  """Knobs that save `excess` bytes together: each time the one that saves most. [] where no knobs do."""
  chosen: dict[str, Knob] = {}
  while excess > 0:
    changes = [(knob, other) for knob, other in _changes(run, number, devices) if allowed(knob)]
    if not changes:
      return []
    knob, run = changes[0]
    excess -= knob.saved
    chosen[knob.field] = knob
  return list(chosen.values())


def _changes(run: Run, number: int, devices: int) -> list[tuple[Knob, Run]]:
  """What saves memory, the most first, and the run with it."""
  now = peak_of(run, run.stages[number], devices)
  found = []
  for field, value, other in _alternatives(run, number):
    try:
      saved = now - peak_of(other, other.stages[number], devices)
    except ConfigError:
      continue
    takes_data = other.mesh.data != run.mesh.data
    if saved > 0:
      found.append((Knob(field, value, saved, other.mesh.data if takes_data else None), other))
  return sorted(found, key=lambda change: -change[0].saved)


def peak_of(run: Run, stage: Stage, devices: int) -> float:
  """Bytes of a device in the stage's fullest step.   Raises: ConfigError where mesh, model and batch do not fit."""
  sizes = mesh_sizes(run.mesh, devices)
  return max(step_memory(run.model_of(stage), stage, phase, sizes, run.mesh.pieces).peak
             for phase in _phases(run, stage, devices))


def _phases(run: Run, stage: Stage, devices: int) -> tuple[Phase, ...]:
  """The stage's phases, checked."""
  phases = stage.phases_over(row_shards(run.model, run.mesh, devices))
  for phase in phases:
    check_divides(run.model, run.mesh, phase.batch_size, phase.seq_len, devices, phase.microbatches, stage.name)
  return phases


def _alternatives(run: Run, number: int) -> Iterator[tuple[str, object, Run]]:
  """(field, value, the run with it)."""
  stage, where = run.stages[number], f'config.stages[{number}]'
  changes: list[tuple[str, Any]] = [('remat', remat) for remat in REMATS if remat != stage.remat]
  changes += [('microbatches', stage.microbatches * factor) for factor in (2, 4, 8)
              if stage.batch_size % (stage.microbatches * factor) == 0]
  changes += [('parameters', 'bfloat16'), ('optimizer_memory', 'host')]
  for field, value in changes:
    yield f'{where}.{field}', value, _with_stage(run, number, **{field: value})
  if stage.rollout is not None:
    at_once = stage.rollout.rows_at_once or stage.batch_size * stage.rollout.minibatches
    for rows in (at_once // 2, at_once // 4, at_once // 8):
      if rows >= stage.rollout.answers:
        rollout = dataclasses.replace(stage.rollout, rows_at_once=rows)
        yield f'{where}.rollout.rows_at_once', rows, _with_stage(run, number, rollout=rollout)
  match stage.optimizer:
    case AdamW() | Muon() | Lion():
      for moments in ('bfloat16', 'int8'):
        optimizer = dataclasses.replace(stage.optimizer, moments=moments)
        yield f'{where}.optimizer.moments', moments, _with_stage(run, number, optimizer=optimizer)
    case Adafactor() | Optax():
      pass
  others = [axis for axis in run.mesh.sizes if axis != 'data']
  for axis in others:
    size = 2 * max(getattr(run.mesh, axis), 1)
    taken = -1 if run.mesh.data == -1 else run.mesh.data // 2
    if taken:
      yield f'config.mesh.{axis}', size, dataclasses.replace(
        run, mesh=dataclasses.replace(run.mesh, **{'data': taken, axis: size}))


def _with_stage(run: Run, number: int, **changes: Any) -> Run:
  stages = list(run.stages)
  stages[number] = dataclasses.replace(stages[number], **changes)
  return dataclasses.replace(run, stages=tuple(stages))


# ---------------------------------------------------------------------------------------------- many changes
def search(run: Run, number: int, topology: Topology, most: int = 5) -> list[Candidate]:
  """The fastest ways to run stage `number` that fit into memory, by arithmetic, the fastest first.

  Raises: ConfigError where nothing is known of the devices.
  """
  chip = topology.chip
  if chip.memory is None or chip.peak is None:
    raise ConfigError('--search', topology.name, 'nothing is known of these devices: name TPUs or GPUs')
  found = []
  for mesh in _meshes(topology.devices):
    for remat, microbatches in itertools.product(REMATS, _divisors(run.stages[number].batch_size)):
      candidate = _candidate(run, number, topology, mesh, remat, microbatches)
      if candidate is not None and candidate.peak <= FULL_SHARE * chip.memory:
        found.append(candidate)
  return sorted(found, key=lambda each: (each.roofline.seconds, each.sent, each.peak))[:most]


def _candidate(run: Run, number: int, topology: Topology, mesh: Mesh, remat: str, microbatches: int
               ) -> Candidate | None:
  """None where it does not divide."""
  try:
    other = dataclasses.replace(_with_stage(run, number, remat=remat, microbatches=microbatches), mesh=mesh)
    stage = other.stages[number]
    phases = _phases(other, stage, topology.devices)
  except ConfigError:
    return None
  model, sizes = other.model_of(stage), mesh_sizes(mesh, topology.devices)
  peak = max(step_memory(model, stage, phase, sizes, mesh.pieces).peak for phase in phases)
  longest = max(phases, key=lambda phase: phase.tokens)
  traffic = step_traffic(model, sizes, longest, other.context_attention, mesh.pieces)
  found = roofline(model, stage, longest, sizes, traffic, topology, mesh.pieces)
  return None if found is None else Candidate(mesh, remat, microbatches, peak, sum(each.sent for each in traffic),
                                              found)


def _meshes(devices: int) -> Iterator[Mesh]:
  """Every mesh of so many devices."""
  for tensor in _divisors(devices, LARGEST['tensor']):
    for context in _divisors(devices // tensor, LARGEST['context']):
      for expert in _divisors(devices // tensor // context):
        rest = devices // tensor // context // expert
        for pipeline in _divisors(rest, LARGEST['pipeline']):
          for fsdp in _divisors(rest // pipeline):
            yield Mesh(rest // pipeline // fsdp, fsdp, tensor, context, expert, pipeline)


def _divisors(number: int, most: int | None = None) -> list[int]:
  """Powers of two, as slices and hosts have them."""
  most = number if most is None else min(most, number)
  return [size for size in range(1, most + 1) if number % size == 0 and math.log2(size).is_integer()]
