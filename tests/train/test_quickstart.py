"""The quickstart as small as a test, with every stage that it has: killed again and again it ends the same, and an
experiment that changes one thing of it shares all that comes before."""
import random
import signal
import time

import pytest

from launch.experiment_file import load_run
from llm_jax.checkpoints.kill_points import KILL_POINTS
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.tracking.metrics import read_generations, read_metrics
from tests.train import runs, small_quickstart

QUICKSTART = str(runs.ROOT / 'experiments/quickstart.py')
KILLS = 20
CLOCK = ('time', 'step_seconds', 'tokens_per_second', 'mfu')  # numbers that no two runs share


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('quickstart')


@pytest.fixture(scope='module')
def untouched(folder):
  workdir = folder / 'untouched'
  finish(folder, workdir)
  return workdir


@pytest.mark.slow  # test_resume.py kills a run of two stages
def test_killed_in_all_stages(folder, untouched, tmp_path):
  """SIGKILL at random moments and in the middle of saves: states, data positions, records and samples are equal, each
  there once and in the same order."""
  rng, died = random.Random(KILLS), 0
  while died < KILLS:
    workdir = tmp_path / str(died)
    died += killed_run(folder, workdir, len(read_metrics(untouched)), KILLS - died, rng)
    for stage in load_run(QUICKSTART).stages:
      assert runs.state_hash(workdir, stage.name) == runs.state_hash(untouched, stage.name), stage.name
      assert metadata(workdir, stage.name).data == metadata(untouched, stage.name).data
    assert numbers(workdir) == numbers(untouched)
    assert read_generations(workdir) == read_generations(untouched)


def test_an_ablation_differs_from_where_it_changes_something(folder, untouched, tmp_path):
  finish(folder, tmp_path, str(runs.ROOT / 'experiments/quickstart_no_averaging.py'))
  names = [stage.name for stage in load_run(QUICKSTART).stages]
  same = {name for name in names if runs.state_hash(tmp_path, name) == runs.state_hash(untouched, name)}
  assert same == set(names) - {'sft', 'dpo'}
  assert metadata(tmp_path, 'sft').lineage.parent == f'anneal/{small_quickstart.STEPS}'


@pytest.mark.slow
def test_rewards_behind_sft(folder, untouched, tmp_path):
  finish(folder, tmp_path, str(runs.ROOT / 'experiments/quickstart_grpo.py'))
  assert runs.state_hash(tmp_path, 'sft') == runs.state_hash(untouched, 'sft')
  steps = [record for record in read_metrics(tmp_path) if (record['stage'], record['kind']) == ('grpo', 'train')]
  assert len(steps) == small_quickstart.STEPS
  assert {'reward/python_block', 'reward/prompt_words', 'padding', 'sampling_padding'} <= steps[0].keys()
  [final] = [record for record in read_metrics(tmp_path) if (record['stage'], record['kind']) == ('grpo', 'final')]
  assert 0 < final['distinct_greedy'] <= 1


def start(folder, workdir, experiment=QUICKSTART, kill_at=''):
  flags = small_quickstart.flags(experiment)
  return runs.start(folder / 'none', workdir, *flags, experiment=experiment, kill_at=kill_at)


def finish(folder, workdir, experiment=QUICKSTART):
  process = start(folder, workdir, experiment)
  output, _ = process.communicate(timeout=600)
  assert process.returncode == 0, output


def killed_run(folder, workdir, records, kills, rng):
  """Starts a run again until it ends, and kills it at as many of `kills` moments as come before that: one in two is
  in the second after one of its `records`, the others are in a save. Gives how many they were."""
  for died, record in enumerate(sorted(rng.sample(range(records), kills))):
    point = rng.choice(KILL_POINTS) if died % 2 else ''
    process = start(folder, workdir, kill_at=point)
    wait_for(process, workdir, records if point else max(record, len(read_metrics(workdir)) + 1))
    time.sleep(rng.uniform(0, 1))
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate()
    if process.returncode == 0:
      return died
    assert process.returncode == -signal.SIGKILL, output
    print('killed', point or 'at a moment', [(r['stage'], r['step']) for r in read_metrics(workdir)[-1:]])
  finish(folder, workdir)
  return kills


def wait_for(process, workdir, records):
  """Until the process has ended or so many records are there."""
  deadline = time.monotonic() + 600
  while process.poll() is None and len(read_metrics(workdir)) < records and time.monotonic() < deadline:
    time.sleep(0.02)


def numbers(workdir):
  return [{name: value for name, value in record.items() if name not in CLOCK} for record in read_metrics(workdir)]


def metadata(workdir, stage):
  return CheckpointStore(workdir / 'checkpoints' / stage, 1).latest_valid().metadata
