"""Many processes as one run: joining them, agreeing, waiting for each other."""
import contextlib
import hashlib
import itertools
import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from llm_jax.config.errors import ConfigError
from llm_jax.runtime.address import split_address
from llm_jax.runtime.errors import CheckpointError

T = TypeVar('T')

HEARTBEAT_SECONDS = 10  # after which the others give up on a process that died
SHUTDOWN_SECONDS = 5
ANSWER_SECONDS = 300  # that a process waits for process 0 to be there
SHARED_SECONDS = 90  # that a network file system may take to show one machine what another one wrote
BARRIER_SECONDS = 24 * 3_600  # a process that dies ends the waiting much earlier
PATIENT_SECONDS = 60  # that a process waits for others before it says for whom; the next time after twice as long
_barriers = itertools.count()


def join(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
  """Joins `jax.distributed` when the arguments or the environment say that this process is one of several.

  In this order: the arguments; LLM_JAX_COORDINATOR (host:port), LLM_JAX_NUM_PROCESSES and LLM_JAX_PROCESS_ID; what jax
  itself detects, tried when the environment shows more than one process (Slurm, Open MPI, TPU hosts of one slice,
  an indexed Kubernetes job) or when the coordinator is 'auto'. Otherwise nothing happens. Call it before jax touches a
  device.

  Raises:
    ConfigError: when the description is incomplete, or the others cannot be reached.
  """
  env = os.environ
  coordinator = coordinator or env.get('LLM_JAX_COORDINATOR') or None
  num_processes = _number('num_processes', num_processes, env.get('LLM_JAX_NUM_PROCESSES'))
  process_id = _number('process_id', process_id, env.get('LLM_JAX_PROCESS_ID'))
  given = {'coordinator': coordinator, 'num_processes': num_processes, 'process_id': process_id}
  detect = coordinator == 'auto' or (all(v is None for v in given.values()) and _launched_as_many(env))
  if detect:
    given = dict.fromkeys(given)
  elif all(v is None for v in given.values()):
    return
  else:
    for field, value in given.items():
      if value is None:
        raise ConfigError(field, value, 'give coordinator, num_processes and process_id together, as flags or as '
                          'LLM_JAX_COORDINATOR, LLM_JAX_NUM_PROCESSES and LLM_JAX_PROCESS_ID')
    if not 0 <= process_id < num_processes:
      raise ConfigError('process_id', process_id, f'use a number from 0 to num_processes - 1 = {num_processes - 1}')
    host, port = split_address('coordinator', coordinator)
    whom = f'the others at {coordinator}' if process_id == 0 else coordinator
    print(f'process {process_id} of {num_processes}: waiting for {whom}', flush=True)
    if process_id > 0:
      _await_answer(coordinator, host, port)
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  try:
    jax.distributed.initialize(
        given['coordinator'], given['num_processes'], given['process_id'],
        cluster_detection_method=None if detect else 'deactivate',
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=SHUTDOWN_SECONDS)
  except (ValueError, RuntimeError) as error:
    raise ConfigError('coordinator', coordinator, f'the processes could not be joined ({_one_line(error)}): give '
                      'coordinator, num_processes and process_id yourself') from error


def _await_answer(coordinator: str, host: str, port: int) -> None:
  """Returns once something listens there: jax itself would end the process, without a word, where nothing does."""
  deadline = time.monotonic() + ANSWER_SECONDS
  while True:
    try:
      socket.create_connection((host, port), timeout=5).close()
      return
    except (OSError, UnicodeError):  # not yet there, or its name not yet known
      if time.monotonic() >= deadline:
        raise ConfigError('coordinator', coordinator, f'nobody answers there after {ANSWER_SECONDS} s: start process 0 '
                          'there, or name its address') from None
    time.sleep(1)


def _number(field: str, flag: int | None, variable: str | None) -> int | None:
  if flag is not None or not variable:
    return flag
  try:
    return int(variable)
  except ValueError:
    raise ConfigError(field, variable, f'LLM_JAX_{field.upper()} must be a whole number') from None


def _launched_as_many(env: os._Environ | dict[str, str]) -> bool:
  """Whether a launcher that jax knows started more than one of us."""
  def count(name: str) -> int:
    return int(env[name]) if env.get(name, '').isdigit() else 1
  hosts = env.get('TPU_PROCESS_ADDRESSES') or env.get('TPU_WORKER_HOSTNAMES') or ''
  return ('SLURM_STEP_NODELIST' in env and count('SLURM_NTASKS') > 1 or count('OMPI_COMM_WORLD_SIZE') > 1
          or hosts.count(',') > 0 or count('MEGASCALE_NUM_SLICES') > 1
          or 'JOB_COMPLETION_INDEX' in env and 'KUBERNETES_SERVICE_HOST' in env)


def barrier(name: str) -> None:
  """Waits until every process is here, through the coordinator and not the devices: the first collective among CPUs
  (gloo) fails when one process comes 30 seconds late, so whoever may be slow is waited for here, and named."""
  if jax.process_count() == 1:
    return
  client, rank, key = multihost.get_jax_distributed_client(), jax.process_index(), f'llm_jax_{name}_{next(_barriers)}'
  client.key_value_set(f'{key}/{rank}', '')
  with _naming_who_is_missing(client, rank, key, name):
    multihost.get_barrier_sync_fn()(key=key, timeout_ms=1_000 * BARRIER_SECONDS)
  if rank == 0:
    client.key_value_delete(f'{key}/')


@contextlib.contextmanager
def _naming_who_is_missing(client: Any, rank: int, key: str, name: str) -> Iterator[None]:
  """Says now and then which processes have not set `key/<rank>`; the lowest of those that have speaks."""
  ended, count = threading.Event(), jax.process_count()

  def watch() -> None:
    begun, pause = time.monotonic(), PATIENT_SECONDS
    while not ended.wait(pause):
      try:
        here = {int(path.rpartition('/')[2]) for path, _ in client.key_value_dir_get(f'{key}/')}
      except jax.errors.JaxRuntimeError:  # process 0 has gone, which jax says
        return
      missing = ', '.join(str(other) for other in range(count) if other not in here)
      if here and missing and rank == min(here):  # all may have come, and process 0 have deleted their keys
        print(f'process {rank} has waited {time.monotonic() - begun:.0f} s for process {missing} ({name})',
              file=sys.stderr, flush=True)
      pause *= 2

  threading.Thread(target=watch, name='waiting', daemon=True).start()
  try:
    yield
  finally:
    ended.set()


def gather(value: int) -> list[int]:
  """The `value` (int32) of every process, by rank. Waits for slow ones."""
  barrier('gather')
  return np.asarray(multihost_utils.process_allgather(np.int32(value))).reshape(-1).tolist()


def agree(name: str, digest: str) -> None:
  """Checks that every process has the same `digest` (of the config, of the code, ...).

  Raises:
    ConfigError: on every process, naming those that differ from process 0.
  """
  if jax.process_count() == 1:
    return
  barrier('agree')
  mine = np.frombuffer(hashlib.sha256(digest.encode()).digest(), np.uint8)
  everyone = np.asarray(multihost_utils.process_allgather(mine)).reshape(jax.process_count(), -1)
  differ = [rank for rank, other in enumerate(everyone) if (other != everyone[0]).any()]
  if differ:
    raise ConfigError(name, digest[:16], f'differs from process 0 on process {", ".join(map(str, differ))}: '
                      'start all processes with the same command and the same code')


def check_shared(folder: Path) -> None:
  """Checks that every process sees what process 0 writes in `folder`: else each would save a part of a checkpoint
  where none can read all of it.

  Raises:
    ConfigError: on every process, naming those that do not see it.
  """
  if jax.process_count() == 1:
    return

  def leave_mark() -> str:
    descriptor, path = tempfile.mkstemp(dir=folder, prefix='.shared.')
    os.close(descriptor)
    return Path(path).name

  mark = folder / on_first(leave_mark)
  deadline = time.monotonic() + SHARED_SECONDS
  while not mark.exists() and time.monotonic() < deadline:
    time.sleep(0.5)
  seen = gather(mark.exists())
  on_first(lambda: mark.unlink(missing_ok=True))
  blind = [rank for rank, sees in enumerate(seen) if not sees]
  if blind:
    raise ConfigError('workdir', str(folder), f'process {", ".join(map(str, blind))} does not see what process 0 '
                      'writes there: name one folder, on a file system that all processes share')


def on_first(function: Callable[[], T]) -> T:
  """Runs `function` on process 0 only; every process gets its result (JSON values), or raises what it raised.

  Raises:
    ConfigError, CheckpointError: on every process when process 0 raised one of them.
    RuntimeError: on the other processes, with the text of any other error of process 0.
  """
  if jax.process_count() == 1:
    return function()
  result: Any = None
  error: Exception | None = None
  if jax.process_index() == 0:
    try:
      result = function()
    except Exception as caught:  # raised again below, after the others have been told
      error = caught
  result, failure = _broadcast([result, _describe_error(error)])
  if error is not None:
    raise error
  match failure:
    case None:
      return result
    case ['ConfigError', field, value, hint]:
      raise ConfigError(field, value, hint)
    case ['CheckpointError', text]:
      raise CheckpointError(text)
    case [kind, text]:
      raise RuntimeError(f'process 0: {kind}: {text}')


def _describe_error(error: Exception | None) -> list[Any] | None:
  match error:
    case None:
      return None
    case ConfigError():
      plain = isinstance(error.value, str | int | float | None)
      return ['ConfigError', error.field, error.value if plain else repr(error.value), error.hint]
    case _:
      return [type(error).__name__, _one_line(error)]


def _broadcast(value: Any) -> Any:
  """Process 0's JSON value, on every process."""
  barrier('broadcast')
  message = np.frombuffer(json.dumps(value).encode(), np.uint8)
  length = int(multihost_utils.broadcast_one_to_all(np.int32(message.size)))
  padded = np.zeros(length, np.uint8)
  padded[:message.size] = message[:length]
  return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes())


def _one_line(error: BaseException) -> str:
  return ' '.join(str(error).split())[:500] or type(error).__name__
