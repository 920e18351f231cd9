"""The run's folder: atomic files, one run at a time, one configuration."""
import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from launch.experiment_file import load_run
from llm_jax.config.errors import ConfigError
from llm_jax.runtime import lineage
from llm_jax.runtime.files import write_atomic
from llm_jax.tracking.run_folder import Workdir, differences
from llm_jax.train import run as run_module

CONFIG = {
    'model': {'d_model': 64, 'norm': {'kind': 'RMSNorm', 'eps': 1e-5}},
    'stages': [{'name': 'pretrain', 'steps': 10, 'learning_rate': {'kind': 'Constant', 'peak': 1e-3},
                'evals': [{'kind': 'HeldOut', 'every': 0}, {'kind': 'Generations', 'prompts': ['a']}],
                'microbatches': 1, 'data': {'sources': [{'source': {'path': 'a.txt'}}]},
                'eval_data': {'sources': [{'source': {'path': 'b.txt'}}]}}],
    'mesh': {'data': -1, 'fsdp': 1}, 'checkpoints': {'every': 10, 'keep': 2}, 'log_every': 1, 'seed': 0,
    'dtype': 'auto'}

HOLDER = """
import os, sys, time
from llm_jax.tracking.run_folder import Workdir
with Workdir(sys.argv[1]).lock():
  child = os.fork() if len(sys.argv) > 2 else 1
  if child: print(child, flush=True)
  else: sys.stdout = None; os.close(1)
  time.sleep(60)
"""


def start_holder(workdir, *extra):
  root = str(Path(__file__).parents[2])
  process = subprocess.Popen([sys.executable, '-c', HOLDER, str(workdir), *extra], stdout=subprocess.PIPE,
                             env={**os.environ, 'PYTHONPATH': root})
  return process, int(process.stdout.readline())


def edited(field, value):
  config = copy.deepcopy(CONFIG)
  node = config
  *parents, last = field
  for key in parents:
    node = node[key]
  node[last] = value
  return config


def test_write_atomic_replaces_and_leaves_nothing_behind(tmp_path):
  for content in ('one', b'two', 'drei – ü'):
    write_atomic(tmp_path / 'file', content)
    assert (tmp_path / 'file').read_bytes() == (content.encode() if isinstance(content, str) else content)
  assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_write_atomic_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch):
  write_atomic(tmp_path / 'file', 'old')

  def full(descriptor):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(OSError, match='No space'):
    write_atomic(tmp_path / 'file', 'new')
  assert (tmp_path / 'file').read_text() == 'old'
  assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_prepare_makes_the_folder_and_nothing_else(tmp_path):
  Workdir(tmp_path / 'a' / 'b').prepare()
  assert list((tmp_path / 'a' / 'b').iterdir()) == []


def test_prepare_refuses_what_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  for path in (tmp_path / 'file', tmp_path / 'file' / 'inside', Path('/proc/runs')):
    with pytest.raises(ConfigError, match='workdir = .*cannot be written'):
      Workdir(path).prepare()


def test_prepare_refuses_a_read_only_folder(tmp_path):
  folder = tmp_path / 'runs'
  folder.mkdir()
  for path in (folder, tmp_path, *tmp_path.parents[:2]):
    path.chmod(0o755)
  folder.chmod(0o555)
  user = os.geteuid()
  try:
    if user == 0:  # root may write anywhere
      os.seteuid(65_534)
    with pytest.raises(ConfigError, match='workdir = .*Permission denied'):
      Workdir(folder).prepare()
  finally:
    os.seteuid(user)
    folder.chmod(0o755)


def test_a_second_run_is_refused_naming_the_first(tmp_path):
  process, _ = start_holder(tmp_path)
  try:
    began = time.monotonic()
    with pytest.raises(ConfigError, match=f'workdir = .*another run is using it .*pid {process.pid} on '):
      with Workdir(tmp_path).lock():
        pass
    assert time.monotonic() - began < 5
  finally:
    process.kill()
    process.wait()
  with Workdir(tmp_path).lock():  # the killed one's lock is gone
    assert json.loads((tmp_path / 'run.lock').read_text())['pid'] == os.getpid()
  assert (tmp_path / 'run.lock').read_text() == ''


def test_a_worker_that_outlives_its_killed_run_does_not_keep_the_lock(tmp_path):
  process, child = start_holder(tmp_path, 'fork')
  try:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    os.kill(child, 0)  # it lives
    with Workdir(tmp_path).lock():
      pass
  finally:
    os.kill(child, signal.SIGKILL)


def test_the_lock_is_let_go_after_an_error(tmp_path):
  with pytest.raises(KeyError), Workdir(tmp_path).lock():
    raise KeyError
  with Workdir(tmp_path).lock():
    pass


@pytest.mark.parametrize('field, value', [
    (('checkpoints', 'every'), 5), (('checkpoints', 'keep'), 9), (('log_every',), 7), (('mesh', 'fsdp'), 8),
    (('stages', 0, 'evals', 0, 'every'), 3), (('stages', 0, 'evals', 1, 'prompts'), ['x', 'y']),
    (('stages', 0, 'microbatches'), 2),
    (('stages', 0, 'data', 'sources', 0, 'source', 'path'), 'moved/a.txt'),
    (('stages', 0, 'eval_data', 'sources', 0, 'source', 'path'), 'moved/b.txt'),
])
def test_safe_changes_are_allowed_and_recorded(tmp_path, field, value):
  Workdir(tmp_path).bind(CONFIG)
  Workdir(tmp_path).bind(edited(field, value))
  assert json.loads((tmp_path / 'config.json').read_text()) == edited(field, value)


@pytest.mark.parametrize('field, value, message', [
    (('seed',), 1, 'seed = 1: .* was started with 0'),
    (('seed',), False, 'seed = False: .* was started with 0'),
    (('dtype',), 'float32', "dtype = 'float32': .* was started with 'auto'"),
    (('model', 'd_model'), 128, 'model.d_model = 128: .* was started with 64'),
    (('model', 'norm', 'eps'), 1e-6, 'model.norm.eps = 1e-06: .* was started with 1e-05'),
    (('model', 'norm'), {'kind': 'LayerNorm', 'eps': 1e-5}, "model.norm = {'kind': 'LayerNorm'"),
    (('stages', 0, 'steps'), 20, r'stages\[0\].steps = 20: .* was started with 10'),
    (('stages', 0, 'learning_rate', 'peak'), 1.0, r'stages\[0\].learning_rate.peak = 1.0'),
    (('stages',), [], r"stages\[0\] = '\(absent\)'"),
    (('new',), 1, r"new = 1: .* was started with '\(absent\)'"),
])
def test_other_changes_name_field_old_and_new_and_change_nothing(tmp_path, field, value, message):
  Workdir(tmp_path).bind(CONFIG)
  before = (tmp_path / 'config.json').read_bytes()
  with pytest.raises(ConfigError, match=message):
    Workdir(tmp_path).bind(edited(field, value))
  assert (tmp_path / 'config.json').read_bytes() == before


def test_a_run_that_averages_keeps_its_checkpoints_steps(tmp_path):
  config = edited(('stages', 0, 'init'), {'kind': 'Average', 'checkpoints': 'pretrain', 'last': 2})
  Workdir(tmp_path).bind(config)
  config['checkpoints'] = {'every': 5, 'keep': 4}
  with pytest.raises(ConfigError, match='checkpoints.every = 5: .* was started with 10'):
    Workdir(tmp_path).bind(config)


@pytest.mark.parametrize('decides, field, value, number', [
    ((('model', 'dropout'), 0.1), ('stages', 0, 'microbatches'), 2, 2),
    ((('model', 'feed_forward'), {'router': {'kind': 'SoftmaxRouter'}}), ('stages', 0, 'microbatches'), 2, 2),
    ((('stages', 0, 'evals'), [{'kind': 'Needles', 'target_recall': 0.9, 'every': 5}]), ('stages', 0, 'evals'),
     [{'kind': 'Needles', 'target_recall': 0.9, 'every': 3}], 3),
])
def test_what_decides_a_result_in_this_run_stays(tmp_path, decides, field, value, number):
  config = edited(*decides)
  Workdir(tmp_path).bind(config)
  config['stages'][0][field[-1]] = value
  with pytest.raises(ConfigError, match=rf'stages\[0\].{field[-1]}\S* = {number}: .* was started with'):
    Workdir(tmp_path).bind(config)


def test_stages_may_be_appended(tmp_path):
  Workdir(tmp_path).bind(CONFIG)
  longer = {**CONFIG, 'stages': [*CONFIG['stages'], {'name': 'anneal', 'steps': 5}]}
  Workdir(tmp_path).bind(longer)
  with pytest.raises(ConfigError, match=r'stages\[1\] = '):
    Workdir(tmp_path).bind(CONFIG)


def test_processes_whose_sources_differ_do_not_agree(tmp_path, monkeypatch):
  """Two clones of one commit, each changed beside it: what the processes compare must differ."""
  run, said = load_run('experiments/family.py:llama', ()), []

  def agree(name, digest):
    if name == 'code':
      said.append(digest)
      raise InterruptedError

  monkeypatch.setattr(run_module.processes, 'agree', agree)
  clone = shutil.copytree(lineage.PACKAGE, tmp_path / 'llm_jax', ignore=shutil.ignore_patterns('__pycache__'))
  (clone / 'train/.#step.py').symlink_to('me@machine.123')  # Emacs, while the file is changed
  for change in ('', '# mine', '# yours', '# yours'):
    (clone / 'train/step.py').write_text((lineage.PACKAGE / 'train/step.py').read_text() + change)
    with monkeypatch.context() as m, pytest.raises(InterruptedError):
      m.setattr(lineage, 'PACKAGE', clone)
      run_module.train(run, tmp_path / 'run')
  assert len(set(said)) == 3 and said[2] == said[3]


def test_until_a_checkpoint_is_whole_the_folder_is_bound_to_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(run_module.schema, 'to_json', lambda run: run.config)

  def bind(seed):
    run = types.SimpleNamespace(config=edited(('seed',), seed), checkpoints=types.SimpleNamespace(every=0))
    run_module.bind(Workdir(tmp_path), run)

  bind(0)
  (tmp_path / 'checkpoints' / 'a' / '00000005.saving').mkdir(parents=True)  # a kill in the first save leaves it
  bind(1)
  for name in ('00000005.old', '00000005'):
    (tmp_path / 'checkpoints' / 'a' / name).mkdir()
    with pytest.raises(ConfigError, match='seed = 2: .* was started with 1'):
      bind(2)
    (tmp_path / 'checkpoints' / 'a' / name).rmdir()


def test_a_damaged_config_is_not_overwritten(tmp_path):
  (tmp_path / 'config.json').write_text('{"seed":')
  with pytest.raises(ConfigError, match='config.json is damaged'):
    Workdir(tmp_path).bind(CONFIG)
  assert (tmp_path / 'config.json').read_text() == '{"seed":'


def test_tuples_equal_their_json(tmp_path):
  Workdir(tmp_path).bind({'a': (1, 2)})
  Workdir(tmp_path).bind({'a': [1, 2]})
  assert list(differences({'a': [1]}, {'a': [1, 2]})) == [('a[1]', '(absent)', 2)]
