"""Two commits are told apart at the place where they part."""
import copy
import pathlib
import shutil
import subprocess

import numpy as np
import pytest

from tools import compare_commits, step_log
from tools.golden_data import TEXTS, write_data

ROOT = pathlib.Path(__file__).parent.parent.parent
EXPERIMENT = '''
from llm_jax.config.experiment import Bytes, Constant, Jsonl, experiment, presets, stage

def get_config(path):
  return experiment(
    tokenizer=Bytes(),
    model=presets.llama(d_model=16, num_layers=1, num_heads=2, d_ff=16, vocab_size=257),
    stages=(stage('pretrain', Jsonl(path), steps=9, seq_len=16, batch_size=2, learning_rate=Constant(RATE)),),
  )
'''
LOG = {
  'format': 1,
  'parameters': {'a/w': [1.0, 0.5], 'b/w': [2.0, -0.5]},
  'gradients': {'a/w': [0.1, 0.0], 'b/w': [0.2, 0.1]},
  'steps': [{'loss': 3.0, 'batch': 'x', 'seconds': 0.2, 'parameters': {'a/w': [1.0, 0.5], 'b/w': [2.0, -0.5]}},
            {'loss': 2.0, 'batch': 'y', 'seconds': 0.1, 'parameters': {'a/w': [1.0, 0.5], 'b/w': [2.0, -0.5]}}],
}


def git(repository: pathlib.Path, *arguments: str) -> str:
  identity = ('-c', 'user.name=A', '-c', 'user.email=a@b.c')
  finished = subprocess.run(['git', *identity, *arguments], cwd=repository, check=True, capture_output=True, text=True)
  return finished.stdout


@pytest.fixture(scope='module')
def repository(tmp_path_factory):
  """Two commits; the second one has twice the learning rate."""
  folder = tmp_path_factory.mktemp('repository')
  for package in ('llm_jax', 'launch', 'experiments', 'tools'):
    shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns('__pycache__'))
  git(folder, 'init', '--quiet')
  for rate in ('1e-3', '2e-3'):
    (folder / 'tiny.py').write_text(EXPERIMENT.replace('RATE', rate))
    git(folder, 'add', '--all')
    git(folder, 'commit', '--quiet', '--message', f'The learning rate is {rate}')
  return folder


def test_two_commits_part_where_the_second_one_learns_faster(repository, tmp_path, monkeypatch, capsys):
  write_data(tmp_path)
  monkeypatch.chdir(repository)
  config = f'--config=tiny.py:{tmp_path / TEXTS}'
  code = compare_commits.main(['HEAD~1', 'HEAD', config, '--steps=3', '--config.seed=5'])
  out = capsys.readouterr().out.splitlines()
  assert code == 1
  assert out[0].startswith('losses part at step 2: 5.')  # the first one is of the initial parameters, which agree
  assert out[1].startswith('parameters after step 1: ')
  assert out[2].startswith('median step: ') and len(out) == 3
  assert len(git(repository, 'worktree', 'list').splitlines()) == 1  # no work tree is left behind


def test_what_cannot_be_run_is_said_in_one_line(repository, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(repository)
  assert compare_commits.main(['no-such-commit']) == 2
  assert 'no-such-commit: neither a commit of this repository nor a folder' in capsys.readouterr().err
  assert compare_commits.main([str(tmp_path)]) == 2
  assert 'only commits from 0.2.0 on' in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- logs
def changed(change) -> dict:
  log = copy.deepcopy(LOG)
  change(log)
  return log


def test_equal_logs_agree():
  assert compare_commits.differences(LOG, copy.deepcopy(LOG), 0.0) == []


@pytest.mark.parametrize('change, words', [
  (lambda log: log['parameters'].update({'b/w': [2.0, 0.5]}),
   'initial parameters: b/w is the first that differs, by 5.0e-01; 1 of 2'),
  (lambda log: log['parameters'].pop('a/w'), 'parameters: only OLD has a/w; only NEW has none'),
  (lambda log: log['steps'][1].update(batch='z'), 'data: the batch of step 2 is the first that differs'),
  (lambda log: log['gradients'].update({'a/w': [0.2, 0.0]}), 'gradients of step 1: a/w is the first'),
  (lambda log: log['steps'][1].update(loss=2.5), 'losses part at step 2: 2.0 and 2.5, 2.5e-01 apart'),
  (lambda log: log['steps'][1].update(loss=float('nan')), 'losses part at step 2: 2.0 and nan'),
  (lambda log: log['steps'][1]['parameters'].update({'b/w': [3.0, 0.5]}), 'parameters after step 2: b/w'),
  (lambda log: log['steps'].pop(), 'steps: 2 and 1'),
  (lambda log: log.update(format=2), 'the logs have formats 1 and 2'),
])
def test_a_difference_is_named(change, words):
  [line] = compare_commits.differences(LOG, changed(change), 1e-6)
  assert line.startswith(words)


def test_differences_within_the_tolerance_are_none():
  log = changed(lambda log: log['steps'][1].update(loss=2.0 + 1e-7))
  assert compare_commits.differences(LOG, log, 1e-6) == []
  assert len(compare_commits.differences(LOG, log, 1e-9)) == 1


def test_a_summary_sees_signs_and_order():
  array = np.array([1.0, 2.0, 3.0], np.float32)
  summaries = [step_log.summary(each) for each in (array, -array, array[::-1])]
  assert {round(norm, 6) for norm, _ in summaries} == {round(14 ** 0.5, 6)}
  assert len({round(wave, 6) for _, wave in summaries}) == 3


def test_step_times_are_compared_by_their_medians():
  slower = changed(lambda log: [step.update(seconds=0.3) for step in log['steps']])
  words = 'median step: 150.00 ms and 300.00 ms, NEW takes 2.000 times as long'
  assert compare_commits.step_times(LOG, slower) == words
