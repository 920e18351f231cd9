"""Stages that learn from their own answers, as a user starts them."""
import signal

import numpy as np
import pytest

from llm_jax.tracking.metrics import read_generations, read_metrics
from tests.train import rollout_kills, runs

STAGES = rollout_kills.STAGES
KILLS = 10  # of one test


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Where compiled programs are kept for all tests of this file."""
  return tmp_path_factory.mktemp('rollout')


@pytest.fixture(scope='module')
def experiment(folder):
  return runs.tiny('rollout', folder / 'none')


@pytest.fixture(scope='module')
def untouched(folder):
  """An uninterrupted run."""
  return rollout_kills.untouched(folder)


@pytest.mark.slow  # tests/rollout/test_source.py has the parts
def test_what_a_person_sees(untouched):
  records = read_metrics(untouched)
  for name in ('rewards', 'adapters'):
    steps = [record for record in records if record['stage'] == name and record['kind'] == 'train']
    began = [record['step'] for record in steps if 'reward' in record]
    assert began == [1, 5, 9]  # four steps learn from a rollout
    first = steps[0]
    assert {'reward/exact', 'reward/regex', 'entropy', 'distinct', 'sampling_seconds', 'cut_off'} <= first.keys()
    assert first['sampler_mismatch_max'] < 1e-4
    assert first['ratio'] == pytest.approx(1, abs=1e-5)  # dropout is configured, and the temperature is not 1
    assert first['ratio_max'] == pytest.approx(1, abs=1e-5)
    assert first['kl'] == pytest.approx(0, abs=1e-6)
    assert steps[-1]['kl'] > 1e-5
    assert all(np.isfinite(record['loss']) for record in steps)
  finals = {record['stage']: record for record in records if record['kind'] == 'final'}
  assert {'pass_greedy', 'pass_sampled', 'pass_greedy_at_start'} <= finals['rewards'].keys()
  cold = finals['critic']  # samples at a temperature near 0
  assert cold['reward_sampled'] == cold['reward_greedy'] and cold['pass_sampled'] == cold['pass_greedy']
  assert any('[reward' in record['text'] for record in read_generations(untouched))


@pytest.mark.slow
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_killed_runs_go_on_bitwise(untouched, folder, seed):
  """SIGKILL at random moments while they sample, score, compute log-probabilities, learn or take the next batch."""
  assert rollout_kills.kill_runs(folder, KILLS, seed) == []


@pytest.mark.slow
@pytest.mark.parametrize('point', ['after_commit@6', 'before_commit@9'])
def test_killed_between_replays(experiment, untouched, folder, tmp_path, point):
  """Step 6 is in the middle of a rollout's replays, and step 9 just after another has begun."""
  workdir = tmp_path / 'run'
  runs.run(folder / 'none', workdir, experiment=experiment, kill_at=point, expect=-signal.SIGKILL)
  runs.run(folder / 'none', workdir, experiment=experiment)
  assert runs.losses(workdir) == runs.losses(untouched)
  for stage in STAGES:
    assert runs.state_hash(workdir, stage) == runs.state_hash(untouched, stage)


@pytest.mark.slow
@pytest.mark.parametrize('mesh', [('fsdp=2', 'tensor=2', 'data=2'), ('fsdp=4', 'tensor=2', 'data=1')], ids=str)
def test_devices_change_only_the_last_digits(experiment, untouched, folder, tmp_path, mesh):
  flags = [f'--config.mesh.{axis}' for axis in mesh]
  for stage in ('texts', 'rewards'):
    runs.run(folder / 'none', tmp_path / 'run', *flags, f'--stage={stage}', experiment=experiment, devices=8)
  check_same_but_for_rounding(tmp_path / 'run', untouched)


@pytest.mark.slow
def test_processes_change_only_the_last_digits(experiment, untouched, folder, tmp_path):
  for stage in ('texts', 'rewards'):
    runs.run_processes(folder / 'none', tmp_path / 'run', 2, f'--stage={stage}', experiment=experiment, devices=1)
  check_same_but_for_rounding(tmp_path / 'run', untouched)


def check_same_but_for_rounding(workdir, reference):
  """The answers of the first rollout, which all parameters of the stage before have a part in, and the losses."""
  told = lambda workdir: [(record['step'], record['prompt'], record['text']) for record in read_generations(workdir)
                          if record['stage'] == 'rewards' and record['step'] == 1]
  assert told(workdir) == told(reference) and told(reference)
  mine, theirs = runs.losses(workdir), runs.losses(reference)
  for (stage, step), loss in mine.items():
    assert loss == pytest.approx(theirs[stage, step], abs=1e-6 if stage == 'rewards' else 1e-5), (stage, step)
