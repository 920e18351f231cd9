"""How this process joins the others of its run."""
import dataclasses
import math
import os
import socket
from collections.abc import Callable, Mapping

import jax
from jax._src import distributed  # which host jax has found to be that of process 0
from orbax.checkpoint import multihost

from llm_jax.config.errors import ConfigError
from llm_jax.runtime import activity, meeting
from llm_jax.runtime.address import split_address
from llm_jax.runtime.errors import one_line
from llm_jax.runtime.links import Link
from llm_jax.runtime.peers import Peers
from llm_jax.runtime.seconds import seconds_of

# After which jax itself gives up on a process, with an abort and no name. The peers know earlier.
HEARTBEAT_SECONDS = 120
HEARTBEAT_VARIABLE = 'LLM_JAX_HEARTBEAT_SECONDS'
SHUTDOWN_SECONDS = 5
PORT_SECONDS = 60
PORT_KEY = 'llm_jax_meeting'  # in jax's store: where process 0 listens for the others
DETECT = 'auto'  # as the coordinator: let jax find the others


@dataclasses.dataclass(frozen=True)
class _Membership:
  """Which of how many processes this one is, and where process 0 listens."""
  coordinator: str
  num_processes: int
  process_id: int


def join(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None,
         connect: Callable[[Peers], None] = lambda peers: None) -> Peers | None:
  """Joins `jax.distributed` when the arguments or the environment say that this process is one of several; returns the
  others, None where this one is alone.

  In this order: the arguments; LLM_JAX_COORDINATOR (host:port), LLM_JAX_NUM_PROCESSES and LLM_JAX_PROCESS_ID; what jax
  itself detects, tried when the environment shows more than one process (Slurm, Open MPI, TPU hosts of one slice,
  an indexed Kubernetes job) or when the coordinator is 'auto'. Otherwise nothing happens. Call it before jax touches a
  device.

  connect: called with the others before any message of theirs is heard.

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
    if jax.process_count() == 1:
      return None
    return _start_peers(jax.process_index(), _meet_through_jax(), connect)
  if nothing_given:
    return None
  membership = _complete(coordinator, num_processes, process_id)
  peers = _start_peers(membership.process_id, _meet(membership), connect)
  activity.begin('joins the others')
  _initialize(membership, coordinator)
  return peers


def _complete(coordinator: str | None, num_processes: int | None, process_id: int | None) -> _Membership:
  if coordinator is None or num_processes is None or process_id is None:
    given = {'coordinator': coordinator, 'num_processes': num_processes, 'process_id': process_id}
    missing = next(field for field, value in given.items() if value is None)
    raise ConfigError(missing, None, 'give coordinator, num_processes and process_id together, as flags or as '
                      'LLM_JAX_COORDINATOR, LLM_JAX_NUM_PROCESSES and LLM_JAX_PROCESS_ID')
  if not 0 <= process_id < num_processes:
    raise ConfigError('process_id', process_id, f'use a number from 0 to num_processes - 1 = {num_processes - 1}')
  return _Membership(coordinator, num_processes, process_id)


def _meet(membership: _Membership) -> dict[int, Link]:
  """Says whom this process waits for, and waits for all."""
  host, port = split_address('coordinator', membership.coordinator)
  is_first = membership.process_id == 0
  whom = f'the others at {membership.coordinator}' if is_first else membership.coordinator
  print(f'process {membership.process_id} of {membership.num_processes}: waiting for {whom}', flush=True)
  if is_first:
    return meeting.receive_all(port, membership.num_processes)
  return {0: meeting.come('coordinator', membership.coordinator, host, port, membership.process_id)}


def _meet_through_jax() -> dict[int, Link]:
  """Links for processes that jax has brought together: process 0 tells the others where it listens."""
  client = multihost.get_jax_distributed_client()
  if jax.process_index() == 0:
    with socket.create_server(('', 0)) as probe:
      port = probe.getsockname()[1]
    client.key_value_set(PORT_KEY, str(port))
    return meeting.receive_all(port, jax.process_count())
  port = int(client.blocking_key_value_get(PORT_KEY, 1_000 * PORT_SECONDS))
  host, _ = split_address('coordinator', distributed.global_state.coordinator_address or '')
  address = f'{host}:{port}'
  return {0: meeting.come('coordinator', address, host, port, jax.process_index())}


def _start_peers(rank: int, links: dict[int, Link], connect: Callable[[Peers], None]) -> Peers:
  peers = Peers(rank, links)
  connect(peers)
  peers.start()
  return peers


def _initialize(membership: _Membership | None, coordinator: str | None) -> None:
  """Starts `jax.distributed`.   membership: None lets jax detect it.   coordinator: as it was given, for the error."""
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.config.update('jax_enable_preemption_service', False)  # it would take SIGTERM over
  known = (None, None, None) if membership is None else dataclasses.astuple(membership)
  heartbeat = seconds_of(HEARTBEAT_VARIABLE, HEARTBEAT_SECONDS)
  patience = meeting.meeting_seconds()
  try:
    jax.distributed.initialize(
      *known,
      cluster_detection_method=None if membership is None else 'deactivate',
      initialization_timeout=math.ceil(patience),
      heartbeat_timeout_seconds=math.ceil(heartbeat),
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
