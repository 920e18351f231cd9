"""`launch.evaluate` finds the same with one device, with eight, and with two processes."""
import json
import os
import subprocess
import sys

import pytest

from tests.harness import small_tasks
from tests.launch.sample_runs import write_run
from tests.runtime.test_processes import ROOT, launch

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('signals_are_heard')]
NAMES = ('choices', 'letters', 'last_word', 'rolling', 'written')


@pytest.fixture(scope='module')
def flags(tmp_path_factory):
  workdir = write_run(tmp_path_factory.mktemp('run'))
  tasks = small_tasks.write(tmp_path_factory.mktemp('tasks'))
  data = [f'--data={name}={tasks}/rows.jsonl' for name in NAMES]
  return [f'--checkpoint={workdir}', f'--tasks={",".join(NAMES)}', f'--include_path={tasks}', *data, '--truncate']


@pytest.fixture(scope='module')
def alone(flags, tmp_path_factory):
  return with_devices(1, flags, tmp_path_factory.mktemp('one'))


def with_devices(count, flags, output):
  env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT),
         'XLA_FLAGS': f'--xla_force_host_platform_device_count={count}'}
  command = [sys.executable, '-m', 'launch.evaluate', *flags, f'--output={output}']
  done = subprocess.run(command, env=env, text=True, capture_output=True, timeout=400)
  assert done.returncode == 0, done.stderr
  return read(output)


def read(output):
  results = json.loads((output / 'results.json').read_text())['results']
  samples = {name: [json.loads(line) for line in (output / f'samples_{name}.jsonl').read_text().splitlines()]
             for name in NAMES}
  return results, samples


def check_same(found, expected):
  for name in NAMES:
    numbers = {key: value for key, value in expected[0][name].items() if isinstance(value, float)}
    assert {key: found[0][name][key] for key in numbers} == pytest.approx(numbers, rel=1e-5), name
    for one, other in zip(found[1][name], expected[1][name], strict=True):
      answers, others = (flat(sample['resps']) for sample in (one, other))
      assert answers == pytest.approx(others, rel=1e-6, abs=1e-5) if name != 'written' else answers == others


def flat(values):
  return [item for value in values for item in flat(value)] if isinstance(values, list) else [values]


def test_eight_devices(flags, alone, tmp_path):
  check_same(with_devices(8, flags, tmp_path), alone)


def test_two_processes(flags, alone, tmp_path):
  process = launch(2, 'launch.evaluate', *flags, f'--output={tmp_path}', DEVICES_PER_PROCESS='2')
  output, _ = process.communicate(timeout=500)
  assert process.returncode == 0, output
  check_same(read(tmp_path), alone)
  assert output.count('page.html') == 1
  refused = launch(2, 'launch.evaluate', *flags, '--against=hf', DEVICES_PER_PROCESS='1')
  output, _ = refused.communicate(timeout=200)
  assert refused.returncode == 2 and 'does not go with several processes' in output
