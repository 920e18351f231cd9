"""Where a step's time went, read from traces: one that jax writes here, and the layouts of GPU and TPU."""
import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.tracking import operations
from llm_jax.tracking.operations import (
  ATTENTION,
  COLLECTIVE,
  COPY,
  ELEMENTWISE,
  MATRIX,
  OTHER,
  REDUCTION,
  kind_of_name,
  kinds_of,
)
from llm_jax.tracking.trace import NOTHING, OTHER_PROGRAMS, STEP, read_trace, step_times, table


def event(name, start, end, pid=1, tid=1, **args):
  return {'ph': 'X', 'name': name, 'pid': pid, 'tid': tid, 'ts': start, 'dur': end - start, 'args': args}


def named(kind, name, pid, tid=0):
  return {'ph': 'M', 'name': f'{kind}_name', 'pid': pid, 'tid': tid, 'args': {'name': name}}


def op(name, start, end, module='jit_train_step', **more):
  return event(name, start, end, hlo_op=name, hlo_module=module, **more)


# ---------------------------------------------------------------------------------------------- kinds
HLO = """HloModule jit_train_step, is_scheduled=true

%fused_a (p: f32[8,8], q: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  %d = f32[8,8]{1,0} dot(%p, %p), metadata={op_name="jit(train_step)/layers/attention/query/dot_general"}
  ROOT %m = f32[8,8]{1,0} exponential(%d)
}

%fused_b (p: f32[8,8]) -> f32[8] {
  %p.1 = f32[8,8]{1,0} parameter(0)
  ROOT %r = f32[8]{0} reduce(%p.1, %c), dimensions={1}, to_apply=%sum, metadata={op_name="jit(train_step)/norm/sum"}
}

ENTRY %main (p: f32[8,8]) -> (f32[8,8], f32[8]) {
  %p.2 = f32[8,8]{1,0:T(8,128)} parameter(0)
  %weights = f32[8,8]{1,0} fusion(%p.2, %p.2), kind=kOutput, calls=%fused_a
  %scores = f32[8,8]{1,0} dot(%p.2, %p.2), metadata={op_name="jit(train_step)/layers/attention/dot_general"}
  %norm = f32[8]{0} fusion(%p.2), kind=kInput, calls=%fused_b
  %gemm = (f32[8,8]{1,0}, /*index=1*/s8[64]{0}) custom-call(%p.2), custom_call_target="__cublas$gemm"
  %kernel = f32[8,8]{1,0} custom-call(%p.2), custom_call_target="__cudnn$fmhaSoftmax"
  %sorted = f32[8,8]{1,0} sort(%p.2), dimensions={1}, to_apply=%less
  %sum = (f32[8]{0}, f32[8]{0}) all-reduce-start(%norm, %norm), to_apply=%add
  %moved = f32[8,8]{1,0} copy(%p.2)
  %added = f32[8,8]{1,0} add(%p.2, %moved)
  %loop = (f32[8,8]{1,0}, (s32[], f32[8]{0})) while(%t), condition=%c, body=%b
  ROOT %out = (f32[8,8]{1,0}, f32[8]{0}) tuple(%added, %norm)
}
"""


def test_kinds_of_operations():
  kinds = kinds_of(HLO)
  wanted = {'weights': MATRIX, 'scores': ATTENTION, 'norm': REDUCTION, 'gemm': MATRIX, 'kernel': ATTENTION,
            'sorted': OTHER, 'sum': COLLECTIVE, 'moved': COPY, 'added': ELEMENTWISE, 'loop': operations.CONTAINER}
  assert {name: kinds[name] for name in wanted} == wanted


@pytest.mark.parametrize('name, kind', [
  ('ncclDevKernel_AllReduce_Sum_f32', COLLECTIVE), ('nvjet_hsh_128x256_64x4', MATRIX), ('MemcpyD2D', COPY),
  ('fmha_v2_flash_attention_bf16', ATTENTION), ('input_reduce_fusion_3', REDUCTION), ('loop_add_fusion', ELEMENTWISE),
  ('cub::DeviceRadixSort', OTHER)])
def test_kinds_of_kernels_by_name(name, kind):
  assert kind_of_name(name) == kind


# ---------------------------------------------------------------------------------------------- times
PROGRAMS = {'jit_train_step': {'dot.1': MATRIX, 'add.1': ELEMENTWISE, 'all-reduce.1': COLLECTIVE, 'while.1': ''}}


def check(times, step, **wanted):
  assert times.step == pytest.approx(step * 1e-6)
  found = {kind: seconds * 1e6 for kind, seconds in times.seconds.items()}
  assert found == pytest.approx({globals()[name]: value for name, value in wanted.items()})
  assert sum(found.values()) == pytest.approx(step)


def test_times_of_a_cpu():
  """Two steps of 100 us; threads that compute at once share the time, and loops are what runs in them."""
  events = [named('process', '/host:CPU', 1), named('thread', 'python', 1, 1)]
  for start in (0, 100):
    events += [
      event(STEP, start, start + 90, step_num='1'), op('while.1', start, start + 50), op('dot.1', start, start + 40),
      op('add.1', start + 20, start + 40, tid=2), op('other.1', start + 60, start + 70, module='jit_evaluate'),
      event('ThunkExecutor', start, start + 90)]
  times = step_times(events, PROGRAMS)
  check(times, 95, MATRIX=30, ELEMENTWISE=10, OTHER_PROGRAMS=10, NOTHING=45)
  assert times.steps == 2 and times.operations == {MATRIX: 1, ELEMENTWISE: 1, OTHER_PROGRAMS: 1}


def test_times_of_gpus():
  """Streams of two devices; the host has given all out before they end."""
  events = [named('process', '/host:CPU', 1), event(STEP, 0, 10, step_num='5')]
  for pid in (2, 3):
    events += [named('process', f'/device:GPU:{pid - 2}', pid), named('thread', 'Stream #13(Compute)', pid, 7),
               named('thread', 'Stream #14(MemcpyD2D)', pid, 8), named('thread', 'XLA Modules', pid, 9),
               op('dot.1', 10, 60, pid=pid, tid=7), event('MemcpyD2D', 60, 80, pid=pid, tid=8),
               op('all-reduce.1', 20, 60 + 20 * (pid == 3), pid=pid, tid=8),
               event('jit_train_step', 10, 80, pid=pid, tid=9)]
  check(step_times(events, PROGRAMS), 80, MATRIX=30, COLLECTIVE=25, COPY=15, NOTHING=10)


def test_times_of_a_tpu():
  events = [named('process', '/host:CPU', 1), event(STEP, 0, 10, step_num='5'),
            named('process', '/device:TPU:0', 2), named('thread', 'XLA Ops', 2, 1), named('thread', 'Steps', 2, 2),
            event('dot.1', 10, 60, pid=2, tid=1), event('while.1', 5, 80, pid=2, tid=1),
            event('5', 0, 80, pid=2, tid=2), event('add.1', 70, 80, pid=2, tid=1)]
  check(step_times(events, PROGRAMS), 80, MATRIX=50, ELEMENTWISE=10, NOTHING=20)


def test_a_trace_without_steps_is_refused(tmp_path):
  with pytest.raises(ValueError, match='no step'):
    step_times([op('dot.1', 0, 1)], PROGRAMS)
  with pytest.raises(FileNotFoundError, match='no trace'):
    read_trace(tmp_path)


def test_the_trace_that_jax_writes(tmp_path):
  """A product that takes most of the time; every operation of it is of a kind that the program's text has."""
  def train_step(x):
    return jnp.sin(x @ x @ x)

  x = jnp.ones((768, 768))
  program = jax.jit(train_step).lower(x).compile()
  jax.block_until_ready(program(x))
  jax.profiler.start_trace(tmp_path)
  for step in range(3):
    with jax.profiler.StepTraceAnnotation(STEP, step_num=step):
      jax.block_until_ready(program(x))
  jax.profiler.stop_trace()
  path, events = read_trace(tmp_path)
  assert json.loads(gzip.decompress(path.read_bytes()))['traceEvents'] == events
  times = step_times(events, {'jit_train_step': kinds_of(program.as_text())})
  assert times.steps == 3 and np.isclose(sum(times.seconds.values()), times.step)
  assert times.operations[MATRIX] == pytest.approx(2) and OTHER_PROGRAMS not in times.seconds
  assert times.seconds[MATRIX] > times.seconds[ELEMENTWISE] > 0
  lines = table(times)
  assert lines[1].split()[:2] == ['matrix', 'products'] and lines[-1].split()[:2] == ['a', 'step']
  assert any(NOTHING in line for line in lines)
