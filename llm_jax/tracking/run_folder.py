"""The folder of a run: writable, locked against a second run, bound to one configuration."""
import contextlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path

from llm_jax.config.errors import ConfigError
from llm_jax.config.run import Run
from llm_jax.runtime.buckets import BucketPath, place
from llm_jax.runtime.errors import explaining_full_disk, is_full_disk
from llm_jax.runtime.files import LockFile, hold_folder, hold_lock
from llm_jax.runtime.repeated import repeated
from llm_jax.tracking.lease import hold_lease
from llm_jax.tracking.run_config import NAME, check_unchanged, read_config, write_config

LOCK = 'run.lock'
REPLACED = ('config.json', 'lineage.json', 'metrics.jsonl', 'generations.jsonl')
LOCK_CHECK_SECONDS = 1.0
MAKE_ROOM = 'make room there, or name a --workdir on another disk'
_LOCK_PATIENCE = 2.0  # seconds that a run which is just ending is given to let go


def workdir_at(path: str | Path) -> 'Workdir':
  """The run's folder at a path, or at the URL of a bucket."""
  found = place(path)
  return BucketWorkdir(found) if isinstance(found, BucketPath) else Workdir(found)


class Workdir:
  """A run's folder on a file system."""

  def __init__(self, path: Path):
    self.path = path

  def prepare(self) -> None:
    """Creates the folder.

    Raises:
      ConfigError: naming `workdir`, when it cannot be made or nothing can be made in it.
      FileError: there is no room for it.
    """
    with self._explaining():
      self.path.mkdir(parents=True, exist_ok=True)
      with tempfile.TemporaryFile(dir=self.path):
        pass

  def clear_interrupted(self) -> None:
    """Removes what a kill has left of files that were being replaced; for the run that holds the folder."""
    for name in REPLACED:
      for path in self.path.glob(f'.{name}.*'):
        path.unlink(missing_ok=True)

  def check_room(self) -> None:
    """Shows that something can be written in the folder; raises as `prepare` does."""
    with self._explaining(), tempfile.TemporaryFile(dir=self.path, buffering=0) as probe:
      probe.write(b'.')

  @contextlib.contextmanager
  def _explaining(self) -> Generator[None, None, None]:
    with explaining_full_disk(self.path, 'the folder of the run', MAKE_ROOM):
      try:
        yield
      except OSError as error:
        if is_full_disk(error):
          raise
        raise ConfigError('workdir', str(self.path), f'cannot be written ({error.strerror}): name a folder that you '
                          'can write to') from error

  @contextlib.contextmanager
  def lock(self, lost: Callable[[str], None] = lambda text: None) -> Generator[None]:
    """Holds the folder while the body runs. The kernel releases it when its owner dies, however that happens.

    One process of a run takes it: process 0. Two locks are held: of `run.lock`, which says who the owner is, and of the
    folder itself, which nobody can delete without the run (a file system of other machines may not have the second).
    Where `run.lock` is deleted under the run, it is made again.

    lost: called in a thread with a line of text, when another run has taken a new `run.lock` before that.

    Raises:
      ConfigError: when another run holds it, naming that run, after at most `_LOCK_PATIENCE` seconds.
    """
    with contextlib.ExitStack() as stack:
      try:
        # The folder first: a run that is refused must not hold a new `run.lock` meanwhile.
        stack.enter_context(hold_folder(self.path, timeout=_LOCK_PATIENCE))
        lock = stack.enter_context(hold_lock(self.path / LOCK, timeout=_LOCK_PATIENCE))
      except TimeoutError as error:
        raise ConfigError('workdir', str(self.path), f'another run is using it ({_owner(self.path / LOCK)}): '
                          'stop that run, or name another workdir') from error
      except OSError as error:
        if is_full_disk(error):
          raise
        raise ConfigError('workdir', str(self.path), f'its file system has no locks ({error.strerror}): '
                          'use a folder on another one') from error
      owner = {'pid': os.getpid(), 'host': socket.gethostname(), 'started': time.strftime('%Y-%m-%d %H:%M:%S%z')}
      content = json.dumps(owner).encode()
      lock.write(content)
      stack.callback(lock.write, b'')
      stack.enter_context(repeated(_renewal(lock, content, lost), LOCK_CHECK_SECONDS, 'lock'))
      yield

  def bind(self, run: Run) -> None:
    """Ties the folder to a run: `config.json` is written the first time, compared afterwards.

    Fields that are safe to change may differ, and stages may be appended; then config.json is brought up to date.

    Raises:
      ConfigError: naming the first other field that differs, with its old and new value; nothing is changed.
    """
    if (self.path / NAME).exists():
      old = read_config(self.path)
      check_unchanged(old, run, self.path)
      if old == run:
        return
    write_config(self.path, run)


class BucketWorkdir(Workdir):
  """A run's folder in a bucket: an object is replaced whole, and a lease stands in place of a lock."""
  path: BucketPath

  def prepare(self) -> None:
    self.path.check_access('workdir', writes=True)

  def clear_interrupted(self) -> None:
    """There is nothing that a kill could leave."""

  def check_room(self) -> None:
    """A bucket is never full."""

  @contextlib.contextmanager
  def lock(self, lost: Callable[[str], None] = lambda text: None) -> Generator[None]:
    """Holds a lease, see `lease.py`."""
    with hold_lease(self.path / LOCK, lost):
      yield


def _renewal(lock: LockFile, content: bytes, lost: Callable[[str], None]) -> Callable[[], bool]:
  """What makes the lock file again where it was deleted; False when another run has taken a new one."""
  def renew() -> bool:
    try:
      if lock.renew():
        lock.write(content)
    except TimeoutError:
      lost(f'{lock.path} was deleted, and another run ({_owner(lock.path)}) has begun in the same folder: this one '
           'ends, so that they do not overwrite each other')
      return False
    except OSError:  # the file system is gone for a while, or full
      pass
    return True
  return renew


def _owner(path: Path) -> str:
  try:
    owner = json.loads(path.read_text())
    return f"pid {owner['pid']} on {owner['host']}, started {owner['started']}"
  except (OSError, ValueError, KeyError, TypeError):
    return f'its owner has not signed {path}'
