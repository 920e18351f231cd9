"""The run's folder: atomic files, one run at a time, one configuration."""
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launch.experiment_file import load_run
from llm_jax.config.errors import ConfigError
from llm_jax.runtime import lineage
from llm_jax.runtime.files import LockFile
from llm_jax.tracking import run_folder
from llm_jax.tracking.run_folder import Workdir
from llm_jax.train import run as run_module

HOLDER = """
import os, sys, time
from llm_jax.tracking import run_folder
from llm_jax.tracking.run_folder import workdir_at
if 'no_folder' in sys.argv:
  import contextlib
  from llm_jax.tracking import run_folder
  run_folder.hold_folder = lambda *_, **__: contextlib.nullcontext()
with workdir_at(sys.argv[1]).lock():
  child = os.fork() if 'fork' in sys.argv else 1
  if child: print(child, flush=True)
  else: sys.stdout = None; os.close(1)
  time.sleep(60)
"""


def start_holder(workdir, *extra):
  root = str(Path(__file__).parents[2])
  process = subprocess.Popen([sys.executable, '-c', HOLDER, str(workdir), *extra], stdout=subprocess.PIPE,
                             env={**os.environ, 'PYTHONPATH': root})
  return process, int(process.stdout.readline())


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


def test_a_second_run_is_refused_where_the_lock_file_was_deleted(tmp_path, monkeypatch):
  monkeypatch.setattr(run_folder, 'LOCK_CHECK_SECONDS', 0.05)
  process, _ = start_holder(tmp_path)
  try:
    (tmp_path / 'run.lock').unlink()
    with pytest.raises(ConfigError, match='workdir = .*another run is using it'), Workdir(tmp_path).lock():
      pytest.fail('two hold it')
    deadline = time.monotonic() + 20
    while not (tmp_path / 'run.lock').exists():  # its owner makes it again
      assert time.monotonic() < deadline
      time.sleep(0.05)
    assert process.poll() is None
  finally:
    process.kill()
    process.wait()


def test_where_folders_cannot_be_locked_the_first_run_ends(tmp_path, monkeypatch):
  """The mutation too: without a lock of the folder the second run gets in."""
  monkeypatch.setattr(run_folder, 'LOCK_CHECK_SECONDS', 0.05)
  monkeypatch.setattr(run_folder, 'hold_folder', lambda *_, **__: contextlib.nullcontext())
  lost, renew, has_second = [], LockFile.renew, threading.Event()
  monkeypatch.setattr(LockFile, 'renew', lambda lock: has_second.is_set() and renew(lock))
  with Workdir(tmp_path).lock(lost.append):
    (tmp_path / 'run.lock').unlink()
    process, _ = start_holder(tmp_path, 'no_folder')
    has_second.set()
    try:
      deadline = time.monotonic() + 20
      while not lost:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    finally:
      process.kill()
      process.wait()
  assert 'run.lock was deleted, and another run (pid ' in lost[0]


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


def test_until_a_checkpoint_is_whole_the_folder_is_bound_to_nothing(tmp_path):
  def bind(seed):
    run_module.bind(Workdir(tmp_path), load_run('experiments/family.py:llama', [('seed', str(seed))]))

  bind(0)
  (tmp_path / 'checkpoints' / 'a' / '00000005.saving').mkdir(parents=True)  # a kill in the first save leaves it
  bind(1)
  for name in ('00000005.old', '00000005'):
    (tmp_path / 'checkpoints' / 'a' / name).mkdir()
    with pytest.raises(ConfigError, match='seed = 2: .* was started with 1'):
      bind(2)
    (tmp_path / 'checkpoints' / 'a' / name).rmdir()
