"""The folder of a run: writable, locked against a second run, bound to one configuration, written atomically."""
import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_jax.config.errors import ConfigError
from llm_jax.runtime.files import write_atomic

# What may change between a run and its resumption: none of it changes which function is being learnt from which data.
# Everything else needs a new workdir, or a new stage: stages may be appended.
SAFE_TO_CHANGE = (
    r'checkpoints\..*',
    r'log_every|stall_seconds',
    r'mesh\..*|context_attention',
    r'stages\[\d+\]\.evals(\[\d+\].*)?',
    r'stages\[\d+\]\.(microbatches|remat|ramp\[\d+\]\.microbatches)',
    r'stages\[\d+\]\.max_nonfinite',
    r'(stages\[\d+\]\.(data|eval_data)|tokenizer)\..*path',  # what is there is checked by its fingerprint
)
_ABSENT = '(absent)'
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

  def bind(self, config: dict[str, Any]) -> None:
    """Ties the folder to a configuration (its JSON form): written the first time, compared afterwards.

    Fields that `SAFE_TO_CHANGE` matches may differ, and stages may be appended; then config.json is brought up to date.

    Raises:
      ConfigError: naming the first other field that differs, with its old and new value; nothing is changed.
    """
    path = self.path / 'config.json'
    config = json.loads(json.dumps(config))
    if path.exists():
      try:
        old = json.loads(path.read_text())
        if not isinstance(old, dict):
          raise ValueError('not an object')
      except ValueError as error:
        raise ConfigError('workdir', str(self.path), f'{path} is damaged ({error}): restore that file, or name another '
                          'workdir') from error
      check_unchanged(old, config, self.path)
      if old == config:
        return
    write_atomic(path, json.dumps(config, indent=2) + '\n')


def check_unchanged(old: dict[str, Any], new: dict[str, Any], workdir: Path) -> None:
  """Raises ConfigError for the first field that differs and is not safe to change."""
  stages = old.get('stages', [])
  deciding = list(_deciding(old))
  matches = lambda field, patterns: any(re.fullmatch(pattern, field) for pattern in patterns)
  for field, before, after in differences(old, new):
    appended = re.fullmatch(r'stages\[(\d+)\]', field)
    if appended and int(appended[1]) >= len(stages):
      continue
    if matches(field, SAFE_TO_CHANGE) and not matches(field, deciding):
      continue
    raise ConfigError(f'config.{field}', after, f'{workdir} was started with {before!r}: set it back, or name another '
                      'workdir')


def _deciding(run: dict[str, Any]) -> Iterator[str]:
  """Fields of SAFE_TO_CHANGE that in this run decide what is learnt."""
  text = json.dumps(run.get('model', {}))
  for i, stage in enumerate(run.get('stages', [])):
    if stage.get('init', {}).get('kind') == 'Average':
      yield r'checkpoints\.every'  # which checkpoints are averaged
    for k, evaluation in enumerate(stage.get('evals', [])):
      if evaluation.get('target_recall') is not None:
        yield rf'stages\[{i}\]\.evals\[{k}\].*'  # when it may end
  if run.get('model', {}).get('dropout') or '"SoftmaxRouter"' in text:
    yield r'stages\[\d+\]\.(ramp\[\d+\]\.)?microbatches'  # each draws its own dropout, and balances its own experts


def differences(old: Any, new: Any, field: str = '') -> Iterator[tuple[str, Any, Any]]:
  """Yields (field, old, new) for every leaf that differs between two JSON trees."""
  if isinstance(old, dict) and isinstance(new, dict) and old.get('kind') == new.get('kind'):
    for key in sorted(old.keys() | new.keys()):
      yield from differences(old.get(key, _ABSENT), new.get(key, _ABSENT), f'{field}.{key}' if field else key)
  elif isinstance(old, list) and isinstance(new, list):
    for i in range(max(len(old), len(new))):
      yield from differences(old[i] if i < len(old) else _ABSENT, new[i] if i < len(new) else _ABSENT, f'{field}[{i}]')
  elif old != new or isinstance(old, bool) != isinstance(new, bool):
    yield field, old, new


def _owner(path: Path) -> str:
  try:
    owner = json.loads(path.read_text())
    return f"pid {owner['pid']} on {owner['host']}, started {owner['started']}"
  except (OSError, ValueError, KeyError, TypeError):
    return f'its owner has not signed {path}'
