"""`launch.plan --compile`: a run's real step compiled for devices that are not here, beside the plan's arithmetic."""
import collections
import contextlib
import re
from collections.abc import Iterator

from llm_jax.config.errors import require
from llm_jax.config.run import Run
from llm_jax.plan.plan import Plan, StagePlan
from llm_jax.plan.topology import Topology
from llm_jax.plan.traffic import expert_rounds
from llm_jax.sharding.collectives import Collective, collectives_of
from llm_jax.train import far

GIB = 2**30
LONGEST_REASON = 300


def compiled_text(run: Run, plan: Plan, topology: Topology) -> str:
  """What the compiler makes of the fullest stage's step: memory, and every kind of collective beside what must be sent.

  Raises: ConfigError where no compiler for the devices is installed, or the stage cannot be compiled without its data.
  """
  import jax
  planned = plan.fullest
  assert planned is not None
  far.prepare()
  stage = next(stage for stage in run.stages if stage.name == planned.name)
  devices = devices_of(topology)
  try:
    step = far.compile_far(run, stage, planned.phase, devices, topology.chip.backend)
  except jax.errors.JaxRuntimeError as error:
    reason = re.sub(r'\s+', ' ', str(error))[:LONGEST_REASON]
    return f'compiled step of stage {planned.name}: refused by the compiler: {reason}'
  rounds = expert_rounds(run.model_of(stage), step.mesh, planned.phase)
  found = collectives_of(step.program.as_text(), step.mesh, rounds)
  lines = [f'compiled step of stage {planned.name}', *_memory(step.program.memory_analysis(), planned, plan),
           *_collectives(found, planned)]
  return '\n'.join(lines)


def devices_of(topology: Topology) -> list:
  """The devices, as their compiler describes them.   Raises: ConfigError where it is not installed."""
  import jax
  try:
    match topology.chip.backend:
      case 'tpu':
        return list(far.tpus(topology.name))
      case 'gpu':
        require(topology.name.startswith('h100:'), '--compile', topology.name, 'of GPUs only h100 can be compiled for')
        return list(far.gpus(topology.devices))
      case _:
        with contextlib.suppress(RuntimeError):  # where this process has its devices already
          jax.config.update('jax_num_cpu_devices', topology.devices)
        devices = jax.devices('cpu')
        require(len(devices) >= topology.devices, '--compile', topology.name, f'here are {len(devices)} CPU devices')
        return devices[:topology.devices]
  except (NotImplementedError, RuntimeError) as error:
    package = 'libtpu' if topology.chip.backend == 'tpu' else 'jax-cuda12-plugin and jax-cuda12-pjrt'
    reason = re.sub(r'\s+', ' ', str(error))[:LONGEST_REASON]
    require(False, '--compile', topology.name, f'no compiler for it was found ({reason}): install {package}')
    raise AssertionError from error


def _row(name: str, value: str) -> str:
  return f'  {name:<34} {value}'


def _memory(analysis, planned: StagePlan, plan: Plan) -> Iterator[str]:
  peak = analysis.peak_memory_in_bytes
  assert planned.memory is not None
  yield _row('arguments (state and batch)', f'{analysis.argument_size_in_bytes / GIB:,.2f} GiB')
  yield _row('temporaries', f'{analysis.temp_size_in_bytes / GIB:,.2f} GiB')
  fits = ''
  if plan.capacity is not None:
    left = plan.capacity - peak
    fits = f', fits: {left / GIB:,.2f} GiB left' if left >= 0 else f', too much by {-left / GIB:,.2f} GiB'
  yield _row('peak of a device', f'{peak / GIB:,.2f} GiB ({planned.memory.peak / peak:.0%} of it by arithmetic){fits}')


def _collectives(found: list[Collective], planned: StagePlan) -> Iterator[str]:
  sent = collections.defaultdict(float)
  for each in found:
    sent[each.kind, '+'.join(each.axes) or 'none'] += each.sent
  must = collections.defaultdict(float)
  for traffic in planned.traffic:
    must[traffic.kind, traffic.axis] += traffic.sent
  for kind, axis in sorted({*sent, *must}, key=lambda key: -max(sent.get(key, 0), must.get(key, 0))):
    words = f'{sent[kind, axis] / GIB:.4g} GiB, by the closed form {must[kind, axis] / GIB:.4g}'
    yield _row(f'  {kind} {axis}', words)
  total, least = sum(sent.values()), sum(must.values())
  ratio = f', {total / least:.2f} times the closed form' if least else ''
  overlapped = sum(each.sent for each in found if each.is_async) / total if total else 0.0
  yield _row('sent by a device in a step', f'{total / GIB:.4g} GiB{ratio}; {overlapped:.0%} beside other work')
