"""A bucket's place for a run: `run.lock` says who trains there, and is signed again every few seconds.

A bucket has no locks that go with their owner. Whoever finds a signature waits whether it is renewed: no clocks are
compared. Between two runs that begin in the same second the later signature wins, and the other run ends.
"""
import contextlib
import itertools
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Generator
from typing import Any

from llm_jax.config.errors import ConfigError
from llm_jax.config.type_hints import is_mapping
from llm_jax.runtime.buckets import BucketPath
from llm_jax.runtime.repeated import repeated

SIGN_SECONDS = 5.0
WAIT_SECONDS = 12.0  # that a signature is given to be renewed


@contextlib.contextmanager
def hold_lease(path: BucketPath, lost: Callable[[str], None]) -> Generator[None]:
  """Signs while the body runs.

  lost: called in a thread with a line of text when another run has signed.

  Raises:
    ConfigError: another run signs.
  """
  _wait_until_free(path)
  owner = {'id': secrets.token_hex(8), 'pid': os.getpid(), 'host': socket.gethostname(),
           'started': time.strftime('%Y-%m-%d %H:%M:%S%z')}
  _sign(path, owner, 0)
  counts = itertools.count(1)

  def renew() -> bool:
    with contextlib.suppress(OSError):  # the bucket does not answer for a while
      found = _read(path)
      if found is not None and found.get('id') != owner['id']:
        lost(f'another run ({_name(found)}) has begun in {path.parent}: this one ends, so that they do not overwrite '
             'each other')
        return False
      _sign(path, owner, next(counts))
    return True

  try:
    with repeated(renew, SIGN_SECONDS, 'lease'):
      yield
  finally:
    with contextlib.suppress(OSError):
      path.unlink(missing_ok=True)


def _wait_until_free(path: BucketPath) -> None:
  found = _read(path)
  if found is None or _is_dead(found):
    return
  deadline = time.monotonic() + WAIT_SECONDS
  while time.monotonic() < deadline:
    time.sleep(1.0)
    now = _read(path)
    if now is None:
      return
    if now != found:
      raise ConfigError('workdir', str(path.parent), f'another run is using it ({_name(now)}): stop that run, or name '
                        'another workdir')


def _is_dead(owner: dict[str, Any]) -> bool:
  """Whether the owner was a process of this machine that has ended."""
  if owner.get('host') != socket.gethostname() or not isinstance(owner.get('pid'), int):
    return False
  if owner['pid'] == os.getpid():  # of a container that has started again
    return True
  try:
    os.kill(owner['pid'], 0)
  except ProcessLookupError:
    return True
  except OSError:
    return False
  return False


def _sign(path: BucketPath, owner: dict[str, Any], count: int) -> None:
  path.write_bytes(json.dumps({**owner, 'count': count}).encode())


def _read(path: BucketPath) -> dict[str, Any] | None:
  try:
    found: Any = json.loads(path.read_bytes())
  except FileNotFoundError:
    return None
  except ValueError:
    return {}
  return dict(found) if is_mapping(found) else {}


def _name(owner: dict[str, Any]) -> str:
  return f'pid {owner.get("pid")} on {owner.get("host")}, started {owner.get("started")}'
