"""Stages that learn from pairs of their own answers, or from a teacher on them, as a user starts them."""
import signal

import numpy as np
import pytest

from llm_jax.tracking.metrics import read_metrics
from tests.train import runs

STAGES = ('texts', 'pairs', 'student', 'tools')
TOOLS = 'def order(digits):\n  return "".join(sorted(digits))\n'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('online')
  (folder / 'tools.py').write_text(TOOLS)
  return folder


@pytest.fixture(scope='module')
def untouched(folder):
  """An uninterrupted run."""
  runs.run(folder / 'none', folder / 'run', experiment=runs.tiny('online', folder))
  return folder / 'run'


@pytest.mark.slow
def test_what_a_person_sees(untouched):
  records = read_metrics(untouched)
  began = lambda name: [record for record in records if record['stage'] == name and 'answer_length' in record]
  for name in ('pairs', 'student', 'tools'):
    assert [record['step'] for record in began(name)] == [1, 5, 9]  # four steps learn from a rollout
  pairs, student = began('pairs')[0], began('student')[0]
  assert {'reward', 'reward/exact', 'reward_gap', 'pairs_alike', 'entropy', 'reward_chosen', 'accuracy'} <= pairs.keys()
  assert pairs['sampler_mismatch_max'] < 1e-4
  assert pairs['loss'] == pytest.approx(np.log(2), abs=1e-5)  # policy and reference are one
  assert {'divergence', 'teacher_nll', 'cut_off'} <= student.keys() and 'reward' not in student
  assert all(np.isfinite(record['loss']) for record in records if record['kind'] == 'train')


@pytest.mark.slow
def test_killed_between_replays(folder, untouched, tmp_path):
  """Of each stage in turn at step 6, which is in the middle of a rollout's replays."""
  workdir, experiment = tmp_path / 'run', runs.tiny('online', folder)
  for _ in STAGES:
    runs.run(folder / 'none', workdir, experiment=experiment, kill_at='after_commit@6', expect=-signal.SIGKILL)
  runs.run(folder / 'none', workdir, experiment=experiment)
  assert runs.losses(workdir) == runs.losses(untouched)
  for stage in STAGES:
    assert runs.state_hash(workdir, stage) == runs.state_hash(untouched, stage)
