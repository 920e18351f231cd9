"""A plan as text for the terminal, and as JSON."""
import dataclasses
from collections.abc import Iterator
from typing import Any

from llm_jax.plan.cost import PETAFLOPS_DAY, Cost
from llm_jax.plan.plan import Plan, StagePlan
from llm_jax.plan.search import Candidate
from llm_jax.sharding.ticks import bubble

GIB = 2**30
NOT_KNOWN = 'not known'


def to_json(plan: Plan) -> dict[str, Any]:
  """Everything that a plan says, as plain numbers; bytes, seconds, FLOPs, dollars, MWh and tonnes."""
  tree = dataclasses.asdict(plan)
  tree['total'] = dataclasses.asdict(plan.total)
  for stage, planned in zip(tree['stages'], plan.stages, strict=True):
    if planned.memory is not None:
      stage['memory'] |= {'stays': planned.memory.stays, 'peak': planned.memory.peak}
  return tree


def to_text(plan: Plan) -> str:
  parts = [_model(plan), _devices(plan), *(_stage(plan, stage) for stage in plan.stages), _total(plan),
           _assumptions(plan)]
  return '\n\n'.join('\n'.join(part) for part in parts)


def _row(name: str, value: str) -> str:
  return f'  {name:<34} {value}'


def _gib(num_bytes: float) -> str:
  return f'{num_bytes / GIB:,.2f} GiB'


def _model(plan: Plan) -> Iterator[str]:
  yield f'model of {plan.model}'
  yield _row('parameters', f'{plan.parameters:,}')
  for part, count in plan.parts.items():
    if count:
      yield _row(f'  {part}', f'{count:,}')
  if plan.active != plan.parameters:
    yield _row('active for a token', f'{plan.active:,}')
  if plan.multi_token:
    yield _row('multi-token blocks beside them', f'{plan.multi_token:,}')
  yield _row('cache of keys and values, bfloat16', f'{plan.cache_bytes:,} bytes a token')


def _devices(plan: Plan) -> Iterator[str]:
  yield f'devices: {plan.topology or f"{plan.devices}, of a kind that is not named (--topology)"}'
  axes = ' '.join(f'{axis}={size}' for axis, size in plan.mesh.items() if size > 1)
  yield _row('mesh', f'{axes or "one device"} ({plan.devices:,} devices)')
  stages = plan.mesh['pipeline']
  if stages > 1:
    yield _row('pipeline', f'{stages} stages, {plan.pieces} pieces: each stage waits {bubble(stages, plan.pieces):.0%} '
               'of the time')
  yield _row('peak of a device', NOT_KNOWN if plan.peak_flops is None else f'{plan.peak_flops / 1e12:,.1f} TFLOP/s')


def _stage(plan: Plan, stage: StagePlan) -> Iterator[str]:
  phase = stage.phase
  yield f'stage {stage.name}'
  yield _row('steps, tokens', f'{stage.steps:,}, {stage.tokens:,}')
  yield _row('FLOPs', f'{_flops(stage.flops)}')
  yield _row('FLOPs as 6 N D', f'{_flops(stage.simple_flops)}')
  for source in stage.sources:
    size = NOT_KNOWN if source.size is None else f'{source.size:,.0f}'
    epochs = NOT_KNOWN if source.epochs is None else f'{source.epochs:.3g}'
    yield _row(f'  {source.name}', f'{source.share:.1%}, {source.tokens:,.0f} tokens; has {size}; epochs {epochs}')
  yield from _cost(stage.cost)
  if stage.memory is None:
    yield _row('memory', f'{NOT_KNOWN} of stages with adapters')
    return
  yield _row('fullest step', f'{phase.batch_size:,} x {phase.seq_len:,} tokens, microbatches={phase.microbatches}')
  yield from _memory(plan, stage)
  yield _row('sent by a device in a step', _gib(sum(traffic.sent for traffic in stage.traffic)))
  for traffic in stage.traffic:
    yield _row(f'  {traffic.kind} {traffic.axis}', f'{_gib(traffic.sent)}  {traffic.what}')
  if stage.roofline is not None:
    yield _row('least time of a step', f'{stage.roofline.seconds:,.3g} s, bound by {stage.roofline.bound} (arithmetic '
               f'{stage.roofline.arithmetic:,.3g} s, network {stage.roofline.network:,.3g} s)')
  if stage.checkpoint is not None:
    yield _row('checkpoint', _gib(stage.checkpoint))


def _memory(plan: Plan, stage: StagePlan) -> Iterator[str]:
  memory = stage.memory
  assert memory is not None
  names = {'block': 'one block, backward', 'loss': 'loss (not beside the last)', 'frozen': 'reference',
           'sampling': 'sampling (before the step)'}
  for field in dataclasses.fields(memory):
    is_absent = field.name in ('frozen', 'sampling') and getattr(memory, field.name) == 0
    if not is_absent:
      yield _row(f'  {names.get(field.name, field.name)}', _gib(getattr(memory, field.name)))
  yield _row('peak of a device', f'{_gib(memory.peak)}{_fits(plan, memory.peak)}')
  is_too_much = plan.capacity is not None and memory.peak > plan.capacity
  for knob in stage.knobs if is_too_much else ():
    left = memory.peak - knob.saved
    yield _row(f'  saves {_gib(knob.saved)}', f'{knob.flags}, then {_gib(left)}{_fits(plan, left)}')


def _fits(plan: Plan, peak: float) -> str:
  if plan.capacity is None:
    return ''
  left = plan.capacity - peak
  return f' of {_gib(plan.capacity)}: ' + (f'fits, {_gib(left)} left' if left >= 0 else f'too much by {_gib(-left)}')


def candidates_text(name: str, number: int, candidates: list[Candidate]) -> str:
  """What a search found for a stage."""
  lines = [f'search for stage {name}: the fastest that fit, by arithmetic']
  for each in candidates:
    lines.append(_row(f'{each.roofline.seconds:,.3g} s a step, {_gib(each.peak)}', each.flags(number)))
  return '\n'.join(lines if candidates else [*lines, _row('none', 'nothing fits: more devices, or a smaller batch')])


def _total(plan: Plan) -> Iterator[str]:
  yield 'all stages'
  tokens = sum(stage.tokens for stage in plan.stages)
  yield _row('tokens', f'{tokens:,}')
  yield _row('FLOPs', _flops(sum(stage.flops for stage in plan.stages)))
  yield from _cost(plan.total)


def _flops(flops: float) -> str:
  return f'{flops:.3g} ({flops / PETAFLOPS_DAY:,.3g} PFLOP/s-days)'


def _cost(cost: Cost) -> Iterator[str]:
  if cost.seconds is None or cost.chip_hours is None:
    yield _row('time', f'{NOT_KNOWN}: name devices whose peak is known (--topology)')
    return
  yield _row('time', f'{cost.seconds / 86_400:,.2f} days ({cost.chip_hours:,.0f} chip-hours)')
  yield _row('price', f'{NOT_KNOWN} (--price)' if cost.dollars is None else f'${cost.dollars:,.0f}')
  if cost.energy is None or cost.carbon is None:
    yield _row('energy', f'{NOT_KNOWN} (--watts)')
  else:
    yield _row('energy, CO2e', f'{cost.energy:,.2f} MWh, {cost.carbon:,.2f} t')


def _assumptions(plan: Plan) -> Iterator[str]:
  given = plan.assumptions
  yield 'assumed'
  yield _row('MFU (--mfu)', f'{given.mfu:.0%} of the bfloat16 peak, attention counted as full squares')
  yield _row('price (--price)', 'none' if given.price is None else f'${given.price:g} a chip and hour')
  yield _row('power (--watts)', 'none' if given.watts is None else f'{given.watts:g} W a chip, all the time')
  yield _row('PUE (--pue), carbon (--carbon)', f'{given.pue:g}, {given.carbon:g} kg CO2e a kWh')
  yield _row('text (--bytes_per_token)', f'{given.bytes_per_token:g} bytes a token where a source is no token file')
  yield _row('memory', 'activations in bfloat16; no optimizer where it is in the host\'s memory')
  yield _row('sent', 'ring algorithms; weights in bfloat16, gathered forward and backward')
  yield _row('least time of a step', 'all arithmetic at the peak, all links at their full rate, one beside the other')
