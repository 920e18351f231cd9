"""Stages that learn from the scores of reward models, as a user starts them."""
import json
import shutil
import signal

import pytest

from llm_jax.tracking.metrics import read_metrics
from tests.train import runs

STAGES = ('helpful', 'safe', 'ppo')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('rewards')
  runs.write_recipe(folder)
  rows = [json.loads(line) for line in (folder / 'pairs.jsonl').read_text().splitlines()]
  for row in rows:
    row['prompt'] = row['prompt'][:5]
  lines = [json.dumps({'prompt': row['prompt']}) + '\n' for row in rows]
  (folder / 'prompts.jsonl').write_text(''.join(lines))
  (folder / 'pairs.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return folder


@pytest.fixture(scope='module')
def untouched(folder):
  """An uninterrupted run."""
  runs.run(folder / 'none', folder / 'run', experiment=runs.tiny('reward_model', folder))
  return folder / 'run'


@pytest.mark.slow  # tests/rollout/test_reward_models.py has the parts
def test_what_a_person_sees(untouched):
  """Each score by its name, and beside them what is only recorded."""
  records = read_metrics(untouched)
  began = [record for record in records if record['stage'] == 'ppo' and 'reward' in record]
  assert [record['step'] for record in began] == [1, 5]
  for record in began:
    want = record['reward/helpful'] + 0.5 * record['reward/safety']
    assert record['reward'] == pytest.approx(want, abs=1e-6)
    assert 0 <= record['reward/regex'] <= 1
  final = next(record for record in records if record['stage'] == 'ppo' and record['kind'] == 'final')
  assert final['pass_greedy'] == final['reward_greedy/regex'] and 'reward_sampled/helpful' in final
  scores = next(record for record in records if record['stage'] == 'safe' and record['kind'] == 'final')
  assert 0 <= scores['accuracy'] <= 1
  page = (untouched / 'report.html').read_text()
  assert 'reward helpful' in page and 'reward regex' in page


@pytest.mark.slow
def test_killed_between_replays(folder, untouched, tmp_path):
  workdir, experiment = tmp_path / 'run', runs.tiny('reward_model', folder)
  runs.run(tmp_path / 'none', workdir, experiment=experiment, kill_at='after_commit@6', expect=-signal.SIGKILL)
  runs.run(tmp_path / 'none', workdir, experiment=experiment)
  assert runs.losses(workdir) == runs.losses(untouched)
  for stage in STAGES:
    assert runs.state_hash(workdir, stage) == runs.state_hash(untouched, stage)


@pytest.mark.slow
def test_the_model_of_another_run(folder, untouched, tmp_path):
  """Its score is that of the same model here; a model that has changed is refused where the run goes on."""
  other, workdir = tmp_path / 'other', tmp_path / 'run'
  shutil.copytree(untouched, other)
  experiment = runs.tiny('reward_model', f'{folder},{other}')
  runs.run(tmp_path / 'none', workdir, experiment=experiment, kill_at='after_commit@6', expect=-signal.SIGKILL)
  first = next(record for record in read_metrics(workdir) if 'reward' in record)
  assert first['reward/other'] == pytest.approx(first['reward/safety'], abs=1e-6)
  shutil.rmtree(other / 'checkpoints/safe/00000004')  # the one before it is the newest now
  output = runs.run(tmp_path / 'none', workdir, experiment=experiment, expect=1)
  assert 'is rewarded by another model other' in output


@pytest.mark.slow
def test_devices_change_only_the_last_digits(folder, untouched, tmp_path):
  workdir = tmp_path / 'run'
  runs.run(tmp_path / 'none', workdir, '--config.mesh.fsdp=2', '--config.mesh.tensor=2', '--config.mesh.data=2',
           experiment=runs.tiny('reward_model', folder), devices=8)
  mine, theirs = (next(record for record in read_metrics(folder) if 'reward' in record)
                  for folder in (workdir, untouched))
  for name in ('reward/helpful', 'reward/safety', 'reward/regex'):
    assert mine[name] == pytest.approx(theirs[name], abs=1e-4)
