"""How this process joins the others of its run."""
import dataclasses
import os
import socket
import time
from collections.abc import Mapping

import jax

from llm_jax.config.errors import ConfigError
from llm_jax.runtime.address import split_address
from llm_jax.runtime.errors import one_line

HEARTBEAT_SECONDS = 10  # after which the others give up on a process that died
SHUTDOWN_SECONDS = 5
ANSWER_SECONDS = 300  # that a process waits for process 0 to listen
CONNECT_SECONDS = 5
RETRY_SECONDS = 1
DETECT = 'auto'  # as the coordinator: let jax find the others


@dataclasses.dataclass(frozen=True)
class _Membership:
  """Which of how many processes this one is, and where process 0 listens."""
  coordinator: str
  num_processes: int
  process_id: int


def join(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
  """Joins `jax.distributed` when the arguments or the environment say that this process is one of several.

  In this order: the arguments; LLM_JAX_COORDINATOR (host:port), LLM_JAX_NUM_PROCESSES and LLM_JAX_PROCESS_ID; what jax
  itself detects, tried when the environment shows more than one process (Slurm, Open MPI, TPU hosts of one slice,
  an indexed Kubernetes job) or when the coordinator is 'auto'. Otherwise nothing happens. Call it before jax touches a
  device.

  Raises:
    ConfigError: when the description is incomplete, or the others cannot be reached.
  """
  environment = os.environ
  coordinator = coordinator or environment.get('LLM_JAX_COORDINATOR') or None
  num_processes = _number('num_processes', num_processes, environment.get('LLM_JAX_NUM_PROCESSES'))
  process_id = _number('process_id', process_id, environment.get('LLM_JAX_PROCESS_ID'))
  nothing_given = coordinator is None and num_processes is None and process_id is None
  if coordinator == DETECT or (nothing_given and _launched_as_many(environment)):
    _initialize(None, coordinator)
  elif not nothing_given:
    membership = _complete(coordinator, num_processes, process_id)
    _meet(membership)
    _initialize(membership, coordinator)


def _complete(coordinator: str | None, num_processes: int | None, process_id: int | None) -> _Membership:
  if coordinator is None or num_processes is None or process_id is None:
    given = {'coordinator': coordinator, 'num_processes': num_processes, 'process_id': process_id}
    missing = next(field for field, value in given.items() if value is None)
    raise ConfigError(missing, None, 'give coordinator, num_processes and process_id together, as flags or as '
                      'LLM_JAX_COORDINATOR, LLM_JAX_NUM_PROCESSES and LLM_JAX_PROCESS_ID')
  if not 0 <= process_id < num_processes:
    raise ConfigError('process_id', process_id, f'use a number from 0 to num_processes - 1 = {num_processes - 1}')
  return _Membership(coordinator, num_processes, process_id)


def _meet(membership: _Membership) -> None:
  """Says whom this process waits for, and waits for process 0 unless it is that."""
  host, port = split_address('coordinator', membership.coordinator)
  is_first = membership.process_id == 0
  whom = f'the others at {membership.coordinator}' if is_first else membership.coordinator
  print(f'process {membership.process_id} of {membership.num_processes}: waiting for {whom}', flush=True)
  if not is_first:
    _await_answer(membership.coordinator, host, port)


def _await_answer(coordinator: str, host: str, port: int) -> None:
  """Returns once something listens there: jax itself would end the process without a message where nothing does."""
  deadline = time.monotonic() + ANSWER_SECONDS
  while True:
    try:
      socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
      return
    except (OSError, UnicodeError):  # it does not listen yet, or its name is not known yet
      if time.monotonic() >= deadline:
        raise ConfigError('coordinator', coordinator, f'nobody answers there after {ANSWER_SECONDS} s: start process 0 '
                          'there, or name its address') from None
    time.sleep(RETRY_SECONDS)


def _initialize(membership: _Membership | None, coordinator: str | None) -> None:
  """Starts `jax.distributed`.   membership: None lets jax detect it.   coordinator: as it was given, for the error."""
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  known = (None, None, None) if membership is None else dataclasses.astuple(membership)
  try:
    jax.distributed.initialize(
      *known,
      cluster_detection_method=None if membership is None else 'deactivate',
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=SHUTDOWN_SECONDS)
  except (ValueError, RuntimeError) as error:
    raise ConfigError('coordinator', coordinator, f'the processes could not be joined ({one_line(error)}): give '
                      'coordinator, num_processes and process_id yourself') from error


def _number(field: str, flag: int | None, variable: str | None) -> int | None:
  if flag is not None or not variable:
    return flag
  try:
    return int(variable)
  except ValueError:
    raise ConfigError(field, variable, f'LLM_JAX_{field.upper()} must be a whole number') from None


def _launched_as_many(environment: Mapping[str, str]) -> bool:
  """Whether a launcher that jax knows started more than one of this process."""
  def number(name: str) -> int:
    value = environment.get(name, '')
    return int(value) if value.isdigit() else 1

  hosts = environment.get('TPU_PROCESS_ADDRESSES') or environment.get('TPU_WORKER_HOSTNAMES') or ''
  slurm = 'SLURM_STEP_NODELIST' in environment and number('SLURM_NTASKS') > 1
  open_mpi = number('OMPI_COMM_WORLD_SIZE') > 1
  tpu_hosts = ',' in hosts
  tpu_slices = number('MEGASCALE_NUM_SLICES') > 1
  indexed_job = 'JOB_COMPLETION_INDEX' in environment and 'KUBERNETES_SERVICE_HOST' in environment
  return slurm or open_mpi or tpu_hosts or tpu_slices or indexed_job
