"""Files that are replaced whole, locked and stamped; with real processes where that matters."""
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_jax.runtime.files import files_below, hold_lock, replace_file, stamp, write_atomic

ROOT = Path(__file__).parents[2]
HOLD = """
import pathlib, sys, time
from llm_jax.runtime.files import hold_lock
with hold_lock(pathlib.Path(sys.argv[1])):
  print('held', flush=True)
  time.sleep(60)
"""


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


def test_a_body_that_raises_leaves_the_old_content_and_no_other_file(tmp_path):
  path = tmp_path / 'a'
  write_atomic(path, 'old')
  with pytest.raises(InterruptedError), replace_file(path) as file:
    file.write(b'half of the new')
    raise InterruptedError
  assert path.read_text() == 'old' and os.listdir(tmp_path) == ['a']


@pytest.mark.parametrize('durable', [True, False])
def test_a_reader_sees_the_old_content_until_the_body_ends(tmp_path, durable):
  path = tmp_path / 'a'
  write_atomic(path, b'old', durable=durable)
  with replace_file(path, durable=durable) as file:
    file.write(b'new')
    file.flush()
    assert path.read_bytes() == b'old'
  assert path.read_bytes() == b'new' and os.listdir(tmp_path) == ['a']
  assert path.stat().st_mode & 0o777 == 0o644


@pytest.fixture
def holder(tmp_path):
  """Another process that holds the lock file `lock`."""
  process = subprocess.Popen([sys.executable, '-c', HOLD, tmp_path / 'lock'], stdout=subprocess.PIPE, text=True,
                             env={**os.environ, 'PYTHONPATH': str(ROOT)})
  assert process.stdout.readline() == 'held\n'
  yield process
  process.kill()
  process.wait()


def test_a_lock_is_held_by_one_process_and_goes_with_it(tmp_path, holder):
  start = time.monotonic()
  with pytest.raises(TimeoutError, match='lock: another process holds this lock'), hold_lock(tmp_path / 'lock', 0.3):
    pytest.fail('two hold it')
  assert time.monotonic() - start >= 0.3
  os.kill(holder.pid, signal.SIGKILL)
  with hold_lock(tmp_path / 'lock'):  # as long as it takes
    pass


def test_a_forked_child_does_not_keep_its_parents_lock(tmp_path):
  """A worker may outlive a run that was killed."""
  context = multiprocessing.get_context('fork')
  child = context.Process(target=time.sleep, args=(60,))
  with hold_lock(tmp_path / 'lock'):
    child.start()
  try:
    with hold_lock(tmp_path / 'lock', timeout=0.5):
      pass
  finally:
    child.kill()
    child.join()


@pytest.mark.parametrize('change', [
  lambda folder: (folder / 'inner/b').write_text('c'),
  lambda folder: os.utime(folder / 'a', (1, 1)),
  lambda folder: (folder / 'a').unlink(),
  lambda folder: (folder / 'inner/c').write_text(''),
  lambda folder: (folder / 'a').rename(folder / 'aa'),
])
def test_a_stamp_tells_whether_any_file_was_touched(tmp_path, change):
  (tmp_path / 'inner').mkdir()
  (tmp_path / 'a').write_text('a')
  (tmp_path / 'inner/b').write_text('bb')
  before = stamp(files_below(tmp_path))
  assert stamp(files_below(tmp_path)) == before
  change(tmp_path)
  assert stamp(files_below(tmp_path)) != before


def test_a_file_that_is_gone_changes_the_stamp(tmp_path):
  files = {'a': tmp_path / 'a'}
  absent = stamp(files)
  (tmp_path / 'a').write_text('a')
  assert stamp(files) != absent


@pytest.mark.parametrize('umask', [0o022, 0o002, 0o077, 0o027])
def test_new_files_follow_the_umask(tmp_path, umask):
  before = os.umask(umask)
  try:
    write_atomic(tmp_path / 'file', 'content')
    with hold_lock(tmp_path / 'lock'):
      pass
    write_atomic(tmp_path / ('x' * 250), 'a name as long as it may be')
  finally:
    os.umask(before)
  modes = {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
  assert modes == {0o666 & ~umask}
