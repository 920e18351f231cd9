"""The collectives of real training steps, compiled for devices that are not here, beside the bytes that they must send.

pip install --no-deps --target=chips 'libtpu==0.0.42.*' 'jax-cuda12-plugin==0.10.2' 'jax-cuda12-pjrt==0.10.2'
PYTHONPATH=chips python -m benchmarks.collectives [--cases h100x8 h100x64 ...]

Compiled and never run: Llama 3 8B cut to two layers, or what a case names; AdamW, bfloat16, blocks rematerialised. The
closed form is that of `llm_jax/plan/traffic.py`. Experts are taken to be chosen about equally often. Peak is what the
compiler plans for a device. Async is the share of the bytes gathered and reduced by collectives that are started and
awaited later.
"""
import argparse
import collections
import dataclasses
import time

from benchmarks.machine import machine
from benchmarks.records import write_results
from llm_jax.train import far

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Case:
  """devices: 'h100:N' or a TPU slice.   mesh: sizes of the axes.   rows: of the batch.   model: a preset.

  layers: that the model is cut to.
  """
  devices: str
  mesh: dict[str, int]
  rows: int
  model: str = 'llama3_1_8b'
  layers: int = 2
  seq_len: int = 4_096
  microbatches: int = 1
  form: str = 'gather'


CASES = {
  'h100x8': Case('h100:8', dict(fsdp=8), 32),
  'h100x8 microbatches=4': Case('h100:8', dict(fsdp=8), 32, microbatches=4),
  'h100x8 data=2': Case('h100:8', dict(data=2, fsdp=4), 32),
  'h100x8 data=2 microbatches=4': Case('h100:8', dict(data=2, fsdp=4), 32, microbatches=4),
  'h100x8 tensor=2': Case('h100:8', dict(fsdp=4, tensor=2), 32),
  'h100x8 context=2': Case('h100:8', dict(fsdp=4, context=2), 16, seq_len=8_192),
  'h100x8 context=2 ring': Case('h100:8', dict(fsdp=4, context=2), 16, seq_len=8_192, form='ring'),
  'h100x64': Case('h100:64', dict(fsdp=64), 256),
  'h100x64 data=8': Case('h100:64', dict(data=8, fsdp=8), 256),
  'h100x64 mixtral': Case('h100:64', dict(fsdp=8, expert=8), 256, 'mixtral_8x7b'),
  'h100x256 deepseek': Case('h100:256', dict(fsdp=16, expert=16), 512, 'deepseek_v3', layers=5),
  'h100x8 pipeline=4': Case('h100:8', dict(data=2, pipeline=4), 64, layers=8),
  'v5px16': Case('v5p:2x2x4', dict(fsdp=16), 256),
  'v5px16 pipeline=4': Case('v5p:2x2x4', dict(data=4, pipeline=4), 256, layers=8),
  'v5px64': Case('v5p:4x4x4', dict(fsdp=64), 1_024),
  'v5px64 data=4': Case('v5p:4x4x4', dict(data=4, fsdp=16), 1_024),
  'v5px64 mixtral': Case('v5p:4x4x4', dict(fsdp=8, expert=8), 512, 'mixtral_8x7b'),
  'v5px256 deepseek': Case('v5p:4x8x8', dict(fsdp=16, expert=16), 512, 'deepseek_v3', layers=5),
  'v5ex256 data=16': Case('v5e:16x16', dict(data=16, fsdp=16), 512),
}


def make_run(case: Case):
  from llm_jax.config import schema
  from llm_jax.config.experiment import AdamW, Bytes, Constant, Mesh, Text, experiment, presets, stage
  model = dataclasses.replace(getattr(presets, case.model)(), num_layers=case.layers)
  mesh = Mesh(**{'data': 1, **case.mesh})
  train = stage('pretrain', Text('x.txt'), steps=1_000, seq_len=case.seq_len, batch_size=case.rows,
                microbatches=case.microbatches, learning_rate=Constant(3e-4), optimizer=AdamW(), remat='block')
  return schema.from_json(schema.plain(experiment(seed=0, tokenizer=Bytes(), model=model, dtype='bfloat16', mesh=mesh,
                                                  context_attention=case.form, stages=(train,))))


def measure(case: Case) -> dict:
  """Bytes by kind and axes, and in all; the closed form; peak memory; seconds."""
  from llm_jax.plan.traffic import expert_rounds, step_traffic
  from llm_jax.sharding.check import mesh_sizes
  from llm_jax.sharding.collectives import collectives_of
  run = make_run(case)
  stage = run.stages[0]
  kind, _, count = case.devices.partition(':')
  backend, devices = ('gpu', far.gpus(int(count))) if kind == 'h100' else ('tpu', far.tpus(case.devices))
  begun = time.perf_counter()
  step = far.compile_far(run, stage, stage.phases[0], devices, backend)
  seconds = time.perf_counter() - begun
  sizes = mesh_sizes(run.mesh, len(devices))
  found = collectives_of(step.program.as_text(), step.mesh, expert_rounds(run.model, sizes, stage.phases[0]))
  sent = collections.defaultdict(float)
  for each in found:
    sent[f'{each.kind} {"+".join(each.axes)}'] += each.sent / GIB
  must = step_traffic(run.model, sizes, stage.phases[0], case.form, run.mesh.pieces)
  total, closed_form = sum(sent.values()), sum(traffic.sent for traffic in must) / GIB
  return {
    'case': dataclasses.asdict(case),
    'sent_gib': dict(sorted(sent.items(), key=lambda item: -item[1])),
    'total_gib': total,
    'closed_form_gib': closed_form,
    'ratio': total / closed_form,
    'async_share': sum(each.sent for each in found if each.is_async) / GIB / total,
    'peak_gib': step.program.memory_analysis().peak_memory_in_bytes / GIB,
    'compile_seconds': seconds,
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--cases', nargs='+', default=list(CASES), choices=list(CASES))
  args = parser.parse_args()
  far.prepare()
  import jax
  cases = {}
  for name in args.cases:
    found = cases[name] = measure(CASES[name])
    parts = ', '.join(f'{what} {gib:.2f}' for what, gib in found['sent_gib'].items() if gib >= 0.005)
    print(f'{name}: {found["total_gib"]:.2f} GiB, {found["ratio"]:.2f} x the closed form ({parts}); '
          f'async {found["async_share"]:.0%}, peak {found["peak_gib"]:.2f} GiB, {found["compile_seconds"]:.0f} s',
          flush=True)
  write_results('collectives', {'machine': machine(), 'jax': jax.__version__, 'cases': cases})


if __name__ == '__main__':
  main()
