"""What a run leaves on disk: exact, resumable, and never a reason to stop. And what the machine could have done."""
import dataclasses
import json
import logging
import math
import random
import re
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.config import experiment, presets
from llm_jax.config.model.count import count_matmul_parameters, count_parameters
from llm_jax.config.model.flops import training_flops_per_token
from llm_jax.runtime import hardware
from llm_jax.runtime.files import replace_file
from llm_jax.tracking import jsonl, tensorboard
from llm_jax.tracking.metrics import MetricsWriter, make_trackers, read_generations, read_metrics, warn_of_damage
from llm_jax.tracking.tracker import TrackedRun


def test_numbers_come_back_bit_for_bit(tmp_path):
  rng = random.Random(0)
  values = [rng.uniform(-10, 10) * 10.0 ** rng.randint(-300, 300) for _ in range(100)] + [0.1, -0.0, 5e-324, math.inf]
  with MetricsWriter(tmp_path) as writer:
    for step, x in enumerate(values, 1):
      writer.write('train', 'a', step, loss=x, array=jnp.float32(0.1), skipped=np.bool_(True), n=7)
    writer.write('train', 'a', 999, loss=math.nan)
  records = read_metrics(tmp_path)
  assert [r['loss'].hex() for r in records[:-1]] == [x.hex() for x in values]
  assert all(r['array'] == float(np.float32(0.1)) and r['skipped'] is True and r['n'] == 7 for r in records[:-1])
  assert math.isnan(records[-1]['loss'])
  assert list(records[0])[:4] == ['kind', 'stage', 'step', 'time']


def test_lists_and_mappings_are_written_as_they_are(tmp_path):
  writer = MetricsWriter(tmp_path)
  writer.write('display', 'a', 1, blocks=[{'rows': (jnp.float32(0.5), 'words')}], found=np.array([1.0])[0])
  writer.close()
  [record] = read_metrics(tmp_path)
  assert record['blocks'] == [{'rows': [0.5, 'words']}] and record['found'] == 1.0


def with_board(folder, primary=True):
  """A writer of metrics.jsonl and TensorBoard's files."""
  rows = dict(steps=10, seq_len=8, batch_size=1, learning_rate=experiment.Constant(1e-3))
  stages = tuple(experiment.stage(name, experiment.StandardLibrary(), **rows) for name in ('a', 'b'))
  run = experiment.Run(presets.llama(16, 1, 1, vocab_size=257), stages)
  return MetricsWriter(folder, make_trackers(TrackedRun(run, folder)), primary=primary)


def write_run(writer, first=1, last=6):
  for step in range(first, last + 1):
    writer.write('train', 'a', step, loss=1 / step)
    if step % 2 == 0:
      writer.write('eval', 'a', step, loss=2 / step)
      writer.generation('a', step, 'def ', f'text {step}')


def without_time(records):
  return [{k: v for k, v in r.items() if k != 'time'} for r in records]


@pytest.mark.parametrize('torn', [b'', b'{"kind": "train", "stage": "a", "st', b'{"kind": "train"}', b'\x00\x00\xff'])
def test_a_resumed_run_reads_as_one_never_stopped(tmp_path, torn):
  whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
  whole.mkdir()
  resumed.mkdir()
  write_run(MetricsWriter(whole))
  write_run(MetricsWriter(resumed), last=5)
  for name in ('metrics.jsonl', 'generations.jsonl'):
    with open(resumed / name, 'ab') as f:
      f.write(torn)
  writer = MetricsWriter(resumed)
  writer.rewind('a', 3)
  write_run(writer, first=4)
  assert without_time(read_metrics(resumed)) == without_time(read_metrics(whole))
  assert read_generations(resumed) == read_generations(whole)
  assert sorted(p.name for p in resumed.iterdir()) == ['generations.jsonl', 'metrics.jsonl']


def test_rewinding_leaves_other_stages_alone(tmp_path):
  writer = MetricsWriter(tmp_path)
  for stage in ('first', 'second', 'third'):
    for step in (1, 2):
      writer.write('train', stage, step)
  writer.rewind('second', 1)
  assert [(r['stage'], r['step']) for r in read_metrics(tmp_path)] == [
    ('first', 1), ('first', 2), ('second', 1), ('third', 1), ('third', 2)]


def test_half_a_line_swallows_no_later_record(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"kind": "train", "stage": "a", "step": 1}\n{"kind": "tr')
  MetricsWriter(tmp_path).write('train', 'a', 2, loss=1.0)
  assert [r['step'] for r in read_metrics(tmp_path)] == [1, 2]


def test_a_failing_disk_warns_once_and_recovers(tmp_path, caplog):
  folder = tmp_path / 'run'
  folder.mkdir()
  writer = with_board(folder)
  writer.write('train', 'a', 1, loss=1.0)
  writer.close()
  shutil.rmtree(folder)
  folder.write_text('a file stands where the folder was')
  with caplog.at_level(logging.WARNING):
    for step in (2, 3, 4):
      writer.write('train', 'a', step, loss=1.0)
      writer.generation('a', step, '', '')
    writer.rewind('a', 2)
    writer.close()
  assert sorted(r.getMessage().split(' (')[0].rsplit('/')[-1] for r in caplog.records) == [
      'generations.jsonl', 'metrics.jsonl', 'tensorboard']
  folder.unlink()
  folder.mkdir()
  writer.write('train', 'a', 5, loss=1.0)
  assert [r['step'] for r in read_metrics(folder)] == [2, 5]  # what was not forgotten meanwhile


def test_a_full_disk_leaves_the_records_before_and_after_it(tmp_path, monkeypatch):
  writer = with_board(tmp_path)
  writer.write('train', 'a', 1, loss=1.0)

  def torn(file, data):  # and the half that it wrote cannot be taken back
    file.write(data[:20])
    raise OSError(28, 'No space left on device')
  monkeypatch.setattr(jsonl, 'write_whole', torn)
  writer.write('train', 'a', 2, loss=1.0)
  monkeypatch.undo()
  writer.write('train', 'a', 3, loss=1.0)
  assert [r['step'] for r in read_metrics(tmp_path)] == [1, 2, 3]


def test_records_that_a_full_disk_refuses_are_written_once_it_takes_them(tmp_path, monkeypatch):
  writer = with_board(tmp_path)
  writer.write('train', 'a', 1, loss=1.0)

  def full(file, data):
    raise OSError(28, 'No space left on device')
  with monkeypatch.context() as disk:
    disk.setattr(jsonl, 'write_whole', full)
    disk.setattr(tensorboard, 'write_whole', full)
    disk.setattr(jsonl, '_keep_only', lambda path, is_kept: full(None, None))
    writer.write('train', 'a', 2, loss=1.0)
    writer.rewind('a', 1)
    writer.write('train', 'a', 2, loss=2.0)
  assert [r['step'] for r in read_metrics(tmp_path)] == [1]
  writer.write('train', 'a', 3, loss=3.0)
  writer.close()
  assert [(r['step'], r['loss']) for r in read_metrics(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 3.0)]


@pytest.mark.parametrize('later', [False, True])
def test_rewinding_needs_no_room_where_what_is_forgotten_stands_last(tmp_path, monkeypatch, later):
  writer = MetricsWriter(tmp_path)
  for step in (1, 2, 3):
    writer.write('train', 'a', step, loss=1.0)
  if later:
    writer.write('train', 'b', 1, loss=1.0)
  replaced = []
  monkeypatch.setattr(jsonl, 'replace_file', lambda path: replaced.append(path) or replace_file(path))
  writer.rewind('a', 1)
  assert [(r['stage'], r['step']) for r in read_metrics(tmp_path)] == [('a', 1), ('b', 1)][:1 + later]
  assert bool(replaced) is later


def test_records_of_a_rare_kind_are_found_without_parsing_all(tmp_path, monkeypatch):
  with MetricsWriter(tmp_path) as writer:
    for step in range(200):
      writer.write('train', 'final', step, loss=1.0)  # a stage of this name is no result
    writer.write('final', 'é', 200, loss=0.5)
    writer.generation('é', 200, 'a', 'b')
    writer.generation('other', 200, 'a', 'b')
    for step in range(200):
      writer.write('train', 'next', step, loss=1.0)
  path = tmp_path / 'metrics.jsonl'
  path.write_text(path.read_text() + '{"kind": "final", "stage": "torn')
  parsed = []
  original = jsonl._entry
  monkeypatch.setattr(jsonl, '_entry', lambda line: parsed.append(line) or original(line))
  found = read_metrics(tmp_path, 'final')
  assert len(parsed) == 202  # those in which the word stands
  assert found == [record for record in read_metrics(tmp_path) if record['kind'] == 'final'] and len(found) == 1
  assert read_generations(tmp_path, 'é') == [record for record in read_generations(tmp_path) if record['stage'] == 'é']
  assert len(read_generations(tmp_path, 'é')) == 1


def test_only_the_primary_process_writes(tmp_path):
  writer = with_board(tmp_path, primary=False)
  writer.write('train', 'a', 1, loss=1.0)
  writer.generation('a', 1, '', '')
  writer.rewind('a', 0)
  writer.close()
  assert not list(tmp_path.iterdir())
  assert read_metrics(tmp_path) == read_generations(tmp_path) == []


def test_tensorboard_shows_a_resumed_run_once(tmp_path):
  from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
  writer = with_board(tmp_path)
  for stage in ('a', 'b'):
    for step in range(1, 6):
      writer.write('train', stage, step, loss=float(step), note='words stay in the file')
  writer.close()
  resumed = with_board(tmp_path)
  resumed.rewind('a', 3)
  resumed.write('train', 'a', 4, loss=40.0)
  resumed.close()
  board = EventAccumulator(str(tmp_path / 'tensorboard' / 'a')).Reload()
  assert board.Tags()['scalars'] == ['train/loss']
  assert [(e.step, e.value) for e in board.Scalars('train/loss')] == [(1, 1), (2, 2), (3, 3), (4, 40)]


# ---------------------------------------------------------------------------------------------- counts and FLOPs
def test_parameter_counts_are_the_published_checkpoints():
  assert count_parameters(presets.gpt2_124m()) == 124_439_808
  assert count_parameters(presets.llama3_8b()) == 8_030_261_248


def test_parameter_counts_by_hand():
  """GPT-2 medium to XL and Llama 1 and 2, as their files on the Hugging Face hub count."""
  for layers, width, heads, expected in ((24, 1024, 16, 354_823_168), (36, 1280, 20, 774_030_080),
                                         (48, 1600, 25, 1_557_611_200)):
    assert count_parameters(presets.gpt2(width, layers, heads)) == expected
  assert count_parameters(presets.llama(4096, 32, 32)) == 6_738_415_616
  assert count_parameters(presets.llama(5120, 40, 40)) == 13_015_864_320
  assert count_parameters(presets.llama(8192, 80, 64, num_kv_heads=8, d_ff=28_672)) == 68_976_648_192


def test_flops_by_hand():
  """PaLM, appendix B: 6 N + 12 L H Q T, N without tables that are only looked up."""
  gpt2 = presets.gpt2_124m()
  assert count_matmul_parameters(gpt2) == 124_439_808 - 1_024 * 768
  assert training_flops_per_token(gpt2, 1_024) == 6 * 123_653_376 + 12 * 12 * 12 * 64 * 1_024
  llama = presets.llama3_8b()
  assert count_matmul_parameters(llama) == 8_030_261_248 - 128_256 * 4_096
  assert training_flops_per_token(llama, 8_192) == 6 * 7_504_924_672 + 12 * 32 * 32 * 128 * 8_192


def test_flops_of_windows_and_latent_attention_by_hand():
  """A window bounds what a query meets; in latent attention scores contract 128 + 64, values 128."""
  flops = training_flops_per_token
  attention = lambda model, context: flops(model, context) - 6 * count_matmul_parameters(model)
  assert attention(presets.mistral_7b(), 32_768) == 12 * 32 * 32 * 128 * 4_096
  assert attention(presets.mistral_7b(), 1_024) == 12 * 32 * 32 * 128 * 1_024
  assert attention(presets.gemma2_2b(), 8_192) == 12 * 13 * 8 * 256 * (4_096 + 8_192)
  assert attention(presets.deepseek_v3(), 4_096) == 12 * (61 + 1) * 128 * 160 * 4_096


@pytest.mark.parametrize('kind, dtype, tera', [
    ('NVIDIA A100-SXM4-80GB', 'bfloat16', 312), ('NVIDIA H100 80GB HBM3', 'bfloat16', 989.4),
    ('NVIDIA H100 PCIe', 'bfloat16', 756), ('NVIDIA H200', jnp.bfloat16, 989.4), ('NVIDIA H200', 'float32', 494.7),
    ('NVIDIA B200', 'bfloat16', 2250), ('NVIDIA GB200', 'bfloat16', 2500), ('NVIDIA L4', 'bfloat16', 121),
    ('NVIDIA L40S', 'bfloat16', 362), ('Tesla T4', 'float32', 8.1), ('TPU v3', 'bfloat16', 61.5),
    ('TPU v4', 'bfloat16', 275), ('TPU v5 lite', 'bfloat16', 197), ('TPU v5', 'bfloat16', 459),
    ('TPU v6 lite', 'bfloat16', 918), ('TPU7x', 'bfloat16', 1153.5)])
def test_published_peaks_by_device_kind(kind, dtype, tera):
  device = types.SimpleNamespace(device_kind=kind, platform='tpu' if 'TPU' in kind else 'gpu', process_index=0)
  assert hardware.peak_flops(device, dtype) == pytest.approx(tera * 1e12)
  assert hardware.total_peak_flops([device] * 4, dtype) == pytest.approx(4 * tera * 1e12)


def test_a_cpu_is_measured_once_and_its_virtual_devices_share_it():
  devices = np.array(jax.devices()).reshape(2, -1)
  assert 1e8 < hardware.peak_flops(devices[0, 0], 'float32') < 1e15
  assert hardware.peak_flops(devices[0, 0], 'float32') == hardware.peak_flops(devices[0, 0], 'bfloat16')
  assert hardware.total_peak_flops(devices.flat, 'float32') == hardware.peak_flops(devices[0, 0], 'float32')


def test_memory_and_machine():
  before = hardware.memory_in_use()
  block = np.ones(50_000_000, np.uint8)
  assert hardware.memory_in_use() - before > 0.5 * block.nbytes
  machine = hardware.describe_machine()
  assert 'cpu' in machine.devices and machine.processes == 1
  assert json.loads(json.dumps(dataclasses.asdict(machine))) == dataclasses.asdict(machine)


def test_a_damaged_line_is_named_and_passed_over(tmp_path, caplog):
  """Whichever bit is flipped: also where the line is still JSON, and says another number."""
  with MetricsWriter(tmp_path) as writer:
    for step in range(1, 6):
      writer.write('train', 'first', step, loss=1 / step, learning_rate=1e-3)
  path = tmp_path / 'metrics.jsonl'
  lines = path.read_bytes().splitlines(keepends=True)
  whole = read_metrics(tmp_path)
  warn_of_damage(tmp_path)
  assert not caplog.records
  for bit in random.Random(0).sample(range(8 * (len(lines[2]) - 1)), 60):
    damaged = bytearray(lines[2])
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(b''.join([*lines[:2], damaged, *lines[3:]]))
    caplog.clear()
    warn_of_damage(tmp_path)
    assert read_metrics(tmp_path) == whole[:2] + whole[3:], damaged
    assert re.search('metrics.jsonl: damaged in line 3[, ]', caplog.text), damaged


def test_the_mutation_of_a_lines_checksum(tmp_path, monkeypatch):
  with MetricsWriter(tmp_path) as writer:
    writer.write('train', 'first', 1, loss=0.5)
  path = tmp_path / 'metrics.jsonl'
  path.write_text(path.read_text().replace('0.5', '0.7'))
  assert read_metrics(tmp_path) == []
  monkeypatch.setattr('llm_jax.tracking.jsonl._checksum', lambda entry: json.loads(path.read_text())['crc32'])
  assert read_metrics(tmp_path)[0]['loss'] == 0.7


def test_lines_without_a_checksum_are_those_of_older_versions(tmp_path, caplog):
  (tmp_path / 'metrics.jsonl').write_text('{"kind": "train", "stage": "a", "step": 1}\n{"kind": "tr')
  warn_of_damage(tmp_path)
  assert [record['step'] for record in read_metrics(tmp_path)] == [1] and not caplog.records  # half a line: a kill
