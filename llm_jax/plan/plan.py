"""What a run takes, before it starts, by arithmetic over its configuration: no device, no jax, no data read."""
import dataclasses
from typing import Any

from llm_jax.config.errors import located
from llm_jax.config.model.architecture import Architecture
from llm_jax.config.model.count import (
  count_active_parameters,
  count_matmul_parameters,
  count_multi_token,
  count_parameters,
  count_parts,
)
from llm_jax.config.model.flops import cache_bytes_per_token, training_flops_per_token
from llm_jax.config.ramp import Phase
from llm_jax.config.run import Mesh, Run
from llm_jax.config.stage import Stage
from llm_jax.plan.cost import Assumptions, Cost, cost_of
from llm_jax.plan.data import SourceUse, source_uses
from llm_jax.plan.memory import Memory, step_memory
from llm_jax.plan.roofline import Roofline, roofline
from llm_jax.plan.search import Knob, knobs
from llm_jax.plan.topology import Topology
from llm_jax.plan.traffic import Traffic, step_traffic
from llm_jax.sharding.check import check_divides, mesh_sizes, row_shards


@dataclasses.dataclass(frozen=True)
class StagePlan:
  """One stage.

  flops: of its tokens, attention, passes of a reference and the sampling of answers included.
  simple_flops: 6 N D, N all active parameters.
  phase: the one whose step takes most memory.   memory: of one device then; None for a stage with adapters.
  traffic: that a device must send in such a step.   roofline: the least time of it; None: not known.
  knobs: what would save memory, the most first.   checkpoint: bytes of the state; None for a stage with adapters.
  """
  name: str
  steps: int
  tokens: int
  flops: float
  simple_flops: float
  sources: list[SourceUse]
  cost: Cost
  phase: Phase
  memory: Memory | None
  traffic: list[Traffic]
  roofline: Roofline | None
  knobs: list[Knob]
  checkpoint: float | None


@dataclasses.dataclass(frozen=True)
class Plan:
  """A run on some devices.

  devices: how many.   mesh: size of each axis.   cache_bytes: of keys and values, a token, in bfloat16.
  capacity: bytes of a device; None: not known.   pieces: that go through the stages of a pipeline.
  """
  model: str
  parameters: int
  parts: dict[str, int]
  active: int
  matmul: int
  multi_token: int
  cache_bytes: int
  topology: str | None
  devices: int
  mesh: dict[str, int]
  pieces: int
  capacity: float | None
  peak_flops: float | None
  stages: list[StagePlan]
  assumptions: Assumptions

  @property
  def total(self) -> Cost:
    """Of all stages."""
    costs = [stage.cost for stage in self.stages]
    sums: dict[str, Any] = {}
    for field in dataclasses.fields(Cost):
      values = [getattr(cost, field.name) for cost in costs]
      sums[field.name] = None if None in values else sum(values)
    return Cost(**sums)

  @property
  def fullest(self) -> StagePlan | None:
    """The stage that takes most memory; None where it is known of none."""
    known = [stage for stage in self.stages if stage.memory is not None]
    return max(known, key=lambda stage: stage.memory.peak if stage.memory else 0, default=None)


def make_plan(run: Run, topology: Topology | None, assumptions: Assumptions, model_name: str) -> Plan:
  """Plans a run.

  topology: None: as many devices as the mesh names, of a kind that is not known.

  Raises: ConfigError where mesh, devices, model and batches do not fit each other.
  """
  model = run.model
  with located('config'):
    devices = _named_devices(run) if topology is None else topology.devices
    sizes = mesh_sizes(run.mesh, devices)
    copies = row_shards(model, run.mesh, devices)
    for stage in run.stages:
      for phase in stage.phases_over(copies):
        check_divides(model, run.mesh, phase.batch_size, phase.seq_len, devices, phase.microbatches, stage.name)
  chip = None if topology is None else topology.chip
  peak = None if chip is None else chip.peak
  stages = [_plan_stage(run, number, sizes, devices, topology, assumptions) for number in range(len(run.stages))]
  return Plan(
    model=model_name, parameters=count_parameters(model), parts=count_parts(model),
    active=count_active_parameters(model), matmul=count_matmul_parameters(model), multi_token=count_multi_token(model),
    cache_bytes=cache_bytes_per_token(model), topology=None if topology is None else topology.name, devices=devices,
    mesh=sizes, pieces=run.mesh.pieces, capacity=None if chip is None else chip.memory, peak_flops=peak, stages=stages,
    assumptions=assumptions)


def _named_devices(run: Run) -> int:
  """The devices that the mesh names; an axis of -1 is one."""
  devices = 1
  for size in run.mesh.sizes.values():
    devices *= max(size, 1)
  return devices


def _plan_stage(run: Run, number: int, sizes: dict[str, int], devices: int, topology: Topology | None,
                assumptions: Assumptions) -> StagePlan:
  stage = run.stages[number]
  copies = row_shards(run.model, run.mesh, devices)
  peak = None if topology is None else topology.chip.peak
  model = run.model_of(stage)
  phases = stage.phases_over(copies)
  passes = stage.training_passes
  flops = sum(tokens * training_flops_per_token(model, phase.seq_len)
              for phase, tokens in zip(phases, _tokens_of(stage, phases), strict=True))
  has_all = stage.adapters is None
  memories = [step_memory(model, stage, phase, sizes, run.mesh.pieces) for phase in phases] if has_all else []
  fullest = max(range(len(memories)), key=lambda i: memories[i].peak, default=0)
  phase = phases[fullest]
  tokens = stage.tokens_after(stage.steps)
  memory = memories[fullest] if has_all else None
  traffic = step_traffic(model, sizes, phase, run.context_attention, run.mesh.pieces) if has_all else []
  return StagePlan(
    name=stage.name, steps=stage.steps, tokens=tokens, flops=passes * flops,
    simple_flops=6.0 * count_active_parameters(model) * tokens,
    sources=source_uses(stage, assumptions.bytes_per_token),
    cost=cost_of(passes * flops, devices, peak, assumptions), phase=phase, memory=memory,
    traffic=traffic,
    roofline=topology and roofline(model, stage, phase, sizes, traffic, topology, run.mesh.pieces),
    knobs=knobs(run, number, devices) if has_all else [],
    checkpoint=None if memory is None else _checkpoint_bytes(model, stage, phase))


def _tokens_of(stage: Stage, phases: tuple[Phase, ...]) -> list[int]:
  """The tokens of each phase."""
  starts = [min(phase.first_token, stage.tokens_after(stage.steps)) for phase in phases]
  ends = [*starts[1:], stage.tokens_after(stage.steps)]
  return [end - start for start, end in zip(starts, ends, strict=True)]


def _checkpoint_bytes(model: Architecture, stage: Stage, phase: Phase) -> float:
  """Of parameters, optimizer and average, as one device alone would hold them."""
  one_device = Mesh(data=1).sizes
  return step_memory(model, stage, phase, one_device).state
