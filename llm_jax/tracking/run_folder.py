"""The folder of a run: writable, locked against a second run, bound to one configuration."""
import contextlib
import errno
import fcntl
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from llm_jax.config.errors import ConfigError
from llm_jax.config.run import Run
from llm_jax.tracking.run_config import NAME, check_unchanged, read_config, write_config

_LOCK_PATIENCE = 2.0  # seconds that a run which is just ending is given to let go
_held: set[int] = set()  # file descriptors of the locks that this process holds


def _forget_locks_in_child() -> None:
  """A forked data worker that outlives a killed run must not keep its lock."""
  while _held:
    os.close(_held.pop())


os.register_at_fork(after_in_child=_forget_locks_in_child)


class Workdir:
  """A run's folder."""

  def __init__(self, path: str | Path):
    self.path = Path(path)

  def prepare(self) -> None:
    """Creates the folder and shows that files can be made in it.

    Raises:
      ConfigError: naming `workdir`, when they cannot.
    """
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      with tempfile.NamedTemporaryFile(dir=self.path, prefix='.writable.') as probe:
        probe.write(b'.')
        probe.flush()
    except OSError as error:
      raise ConfigError('workdir', str(self.path), f'cannot be written ({error.strerror}): name a folder that you can '
                        'write to, on a disk with free space') from error

  @contextlib.contextmanager
  def lock(self) -> Iterator[None]:
    """Holds `run.lock` while the body runs. The kernel releases it when its owner dies, however that happens.

    One process of a run takes it: process 0.

    Raises:
      ConfigError: when another run holds it, naming that run, after at most `_LOCK_PATIENCE` seconds.
    """
    path = self.path / 'run.lock'
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
      self._acquire(descriptor, path)
    except BaseException:
      os.close(descriptor)
      raise
    _held.add(descriptor)
    owner = {'pid': os.getpid(), 'host': socket.gethostname(), 'started': time.strftime('%Y-%m-%d %H:%M:%S%z')}
    try:
      os.ftruncate(descriptor, 0)
      os.pwrite(descriptor, json.dumps(owner).encode(), 0)
      yield
      os.ftruncate(descriptor, 0)
    finally:
      _held.discard(descriptor)
      os.close(descriptor)

  def _acquire(self, descriptor: int, path: Path) -> None:
    deadline = time.monotonic() + _LOCK_PATIENCE
    while True:
      try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
      except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
          raise ConfigError('workdir', str(self.path), f'its file system has no locks ({error.strerror}): '
                            'use a folder on another one') from error
      if time.monotonic() > deadline:
        raise ConfigError('workdir', str(self.path), f'another run is using it ({_owner(path)}): '
                          'stop that run, or name another workdir')
      time.sleep(0.1)

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


def _owner(path: Path) -> str:
  try:
    owner = json.loads(path.read_text())
    return f"pid {owner['pid']} on {owner['host']}, started {owner['started']}"
  except (OSError, ValueError, KeyError, TypeError):
    return f'its owner has not signed {path}'
