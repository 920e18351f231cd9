"""The folder of a run: writable, locked against a second run, bound to one configuration."""
import contextlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

from llm_jax.config.errors import ConfigError
from llm_jax.config.run import Run
from llm_jax.runtime.files import hold_lock
from llm_jax.tracking.run_config import NAME, check_unchanged, read_config, write_config

_LOCK_PATIENCE = 2.0  # seconds that a run which is just ending is given to let go


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
  def lock(self) -> Generator[None]:
    """Holds `run.lock` while the body runs. The kernel releases it when its owner dies, however that happens.

    One process of a run takes it: process 0.

    Raises:
      ConfigError: when another run holds it, naming that run, after at most `_LOCK_PATIENCE` seconds.
    """
    path = self.path / 'run.lock'
    with contextlib.ExitStack() as stack:
      try:
        descriptor = stack.enter_context(hold_lock(path, timeout=_LOCK_PATIENCE))
      except TimeoutError as error:
        raise ConfigError('workdir', str(self.path), f'another run is using it ({_owner(path)}): '
                          'stop that run, or name another workdir') from error
      except OSError as error:
        raise ConfigError('workdir', str(self.path), f'its file system has no locks ({error.strerror}): '
                          'use a folder on another one') from error
      owner = {'pid': os.getpid(), 'host': socket.gethostname(), 'started': time.strftime('%Y-%m-%d %H:%M:%S%z')}
      os.ftruncate(descriptor, 0)
      os.pwrite(descriptor, json.dumps(owner).encode(), 0)
      yield
      os.ftruncate(descriptor, 0)

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
