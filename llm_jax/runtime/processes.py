"""Many processes as one run: agreeing, waiting for each other, doing something on one for all."""
import contextlib
import hashlib
import itertools
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from llm_jax.config.errors import ConfigError
from llm_jax.runtime import activity
from llm_jax.runtime.buckets import BucketPath
from llm_jax.runtime.errors import CheckpointError, FileError, RewardError, one_line
from llm_jax.runtime.ranks import in_words

T = TypeVar('T')

SHARED = '.shared'
SHARED_SECONDS = 90  # that a network file system may take to show one machine what another one wrote
BARRIER_SECONDS = 24 * 3_600  # a process that dies ends the waiting much earlier
PATIENT_SECONDS = 60  # that a process waits for others before it names them; the next time after twice as long
ANSWER = '_answer'  # behind a meeting's key: what process 0 makes of all values
_barriers = itertools.count()
_past_meetings: list[str] = []  # on process 0: whose keys are still there


def barrier(name: str) -> None:
  """Waits until every process is here.

  It goes through the coordinator, not the devices: the first collective among CPUs (gloo) fails when one process comes
  30 seconds late. Whoever may be slow is therefore waited for here, and named.
  """
  if jax.process_count() > 1:
    _meet(name, '')


def connect_devices() -> None:
  """Lets the devices of all processes exchange something once, while everyone is here: see `barrier`."""
  if jax.process_count() > 1:
    barrier('connect')
    multihost_utils.sync_global_devices('connect')


def _meet(name: str, value: str) -> str:
  """Waits until every process is here; returns the key below which each has then set its `value`, `<key>/<rank>`.

  Process 0 deletes what lies below the key, and its answer, at the next meeting: by then every process has read it.
  """
  client = multihost.get_jax_distributed_client()
  rank = jax.process_index()
  key = f'llm_jax_{name}_{next(_barriers)}'
  client.key_value_set(f'{key}/{rank}', value)
  with activity.waiting(), naming_the_missing(client, key, name):
    multihost.get_barrier_sync_fn()(key=key, timeout_ms=1_000 * BARRIER_SECONDS)
  if rank == 0:
    for past in _past_meetings:
      client.key_value_delete(f'{past}/')
      client.key_value_delete(f'{past}{ANSWER}')
    _past_meetings[:] = [key]
  return key


def _ask_all(name: str, value: str, answer: Callable[[list[str]], str]) -> str:
  """What process 0 makes of the `value` of every process, by rank. Waits for slow ones.

  It goes through the coordinator too: among devices a program would be compiled for every length of text. Process 0
  alone reads what all have set, so that of a thousand each need not read a thousand.
  """
  key = _meet(name, value)
  client = multihost.get_jax_distributed_client()
  if jax.process_index() != 0:
    with activity.waiting():
      return client.blocking_key_value_get(f'{key}{ANSWER}', 1_000 * BARRIER_SECONDS)
  values = {int(path.rpartition('/')[2]): text for path, text in client.key_value_dir_get(f'{key}/')}
  answered = answer([values[rank] for rank in range(jax.process_count())])
  client.key_value_set(f'{key}{ANSWER}', answered)
  return answered


@contextlib.contextmanager
def naming_the_missing(client: Any, key: str, name: str) -> Generator[None, None, None]:
  """While the body waits, prints now and then which processes have not set `key/<rank>`.

  Of the processes that wait, only the one with the lowest rank asks for all keys, and prints: of a thousand, each would
  read a thousand.
  """
  ended = threading.Event()
  rank = jax.process_index()
  everyone = range(jax.process_count())  # asked now: in the thread jax may be gone

  def watch() -> None:
    start = time.monotonic()
    pause = PATIENT_SECONDS
    while not ended.wait(pause):
      try:
        keys = [path for path, _ in client.key_value_dir_get(f'{key}/')] if _is_lowest(client, rank, key) else []
      except jax.errors.JaxRuntimeError:  # process 0 is gone, which jax reports itself
        return
      waiting = {int(path.rpartition('/')[2]) for path in keys}
      missing = in_words([other for other in everyone if other not in waiting])
      # Nobody waits once all have come and process 0 has deleted their keys.
      if waiting and missing and rank == min(waiting):
        print(f'process {rank} has waited {time.monotonic() - start:.0f} s for process {missing} ({name})',
              file=sys.stderr, flush=True)
      pause *= 2

  threading.Thread(target=watch, name='waiting', daemon=True).start()
  try:
    yield
  finally:
    ended.set()


def _is_lowest(client: Any, rank: int, key: str) -> bool:
  """Whether no process of a lower rank has set its `key/<rank>`. Process 0 has, mostly, and is asked for first."""
  for lower in range(rank):
    try:
      client.key_value_try_get(f'{key}/{lower}')
    except jax.errors.JaxRuntimeError:  # it is not there
      continue
    return False
  return True


def gather(value: int) -> list[int]:
  """The `value` of every process, by rank. Waits for slow ones."""
  if jax.process_count() == 1:
    return [int(value)]
  return json.loads(_ask_all('gather', str(int(value)), lambda values: f'[{",".join(values)}]'))


def agree(name: str, text: str) -> None:
  """Checks that every process has the same `text` (the config, a digest of the code, ...).

  Raises:
    ConfigError: on every process, naming those that differ from process 0.
  """
  if jax.process_count() == 1:
    return

  def find_different(digests: list[str]) -> str:
    return in_words([rank for rank, digest in enumerate(digests) if digest != digests[0]])

  different = _ask_all('agree', hashlib.sha256(text.encode()).hexdigest(), find_different)
  if different:
    raise ConfigError(name, text[:16], f'differs from process 0 on process {different}: '
                      'start all processes with the same command and the same code')


def check_shared(folder: Path) -> None:
  """Checks that every process sees what process 0 writes in `folder`. Else each would save a part of a checkpoint
  where none can read all of it.

  Raises:
    ConfigError: on every process, naming those that do not see it.
  """
  if jax.process_count() == 1:
    return

  def make_probe() -> str:
    if isinstance(folder, BucketPath):
      (folder / SHARED).write_bytes(b'.')
      return SHARED
    descriptor, path = tempfile.mkstemp(dir=folder, prefix=f'{SHARED}.')
    os.close(descriptor)
    return Path(path).name

  probe = folder / on_first(make_probe)
  deadline = time.monotonic() + SHARED_SECONDS
  while not probe.exists() and time.monotonic() < deadline:
    time.sleep(0.5)
  seen = gather(probe.exists())
  on_first(lambda: probe.unlink(missing_ok=True))
  blind = in_words([rank for rank, sees in enumerate(seen) if not sees])
  if blind:
    raise ConfigError('workdir', str(folder), f'process {blind} does not see what process 0 '
                      'writes there: name one folder, on a file system that all processes share')


def on_first(function: Callable[[], T]) -> T:
  """Runs `function` on process 0 only; every process gets its result (JSON values: tuples come back as lists), or
  raises what it raised.

  Raises:
    ConfigError, CheckpointError, FileError, RewardError: on every process when process 0 raised one of them.
    RuntimeError: on the other processes, with the text of any other error of process 0.
  """
  if jax.process_count() == 1:
    return function()
  result: T | None = None
  error: Exception | None = None
  if jax.process_index() == 0:
    try:
      result = function()
    except Exception as caught:  # raised again below, once the others know of it
      error = caught
  result, failure = _broadcast([result, None if error is None else _describe(error)])
  if error is not None:
    raise error
  if failure is not None:
    raise _error_described(failure)
  return result  # type: ignore[return-value]  # None only where the function returns it


def _describe(error: Exception) -> list[Any]:
  """An error as JSON values, for `_error_described`."""
  if isinstance(error, ConfigError):
    is_plain = isinstance(error.value, str | int | float | None)
    return ['ConfigError', error.field, error.value if is_plain else repr(error.value), error.hint]
  return [type(error).__name__, one_line(error)]


def _error_described(failure: list[Any]) -> Exception:
  """The error to raise where process 0 raised the one that `failure` describes."""
  match failure:
    case ['ConfigError', field, value, hint]:
      return ConfigError(field, value, hint)
    case ['CheckpointError', text]:
      return CheckpointError(text)
    case ['FileError', text]:
      return FileError(text)
    case ['RewardError', text]:
      return RewardError(text)
    case [kind, text]:
      return RuntimeError(f'process 0: {kind}: {text}')
    case _:
      raise AssertionError(failure)


def _broadcast(value: Any) -> Any:
  """Process 0's JSON value, on every process."""
  is_first = jax.process_index() == 0
  return json.loads(_ask_all('broadcast', json.dumps(value) if is_first else '', lambda values: values[0]))
