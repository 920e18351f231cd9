"""Many hosts of one run on one machine: each a thread that speaks what real hosts speak, and computes nothing.

Real are the meeting, the links, jax's coordinator with one client a host, what `processes` agrees on, and all that
`CheckpointStore` does. In the place of devices and of Orbax's handler stands `HostCheckpointer`, which writes each
host's part of every array with the same libraries (tensorstore's OCDBT, merged by process 0 as Orbax does).
"""
import asyncio
import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import math
import pathlib
import selectors
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import numpy as np
import tensorstore as ts
from etils import epath
from jax._src import distributed
from jax._src.lib import _jax
from orbax.checkpoint._src.serialization import ocdbt_utils, tensorstore_utils
from orbax.checkpoint._src.serialization.ocdbt_process_spec import OcdbtProcessSpec

from llm_jax.checkpoints import saver, shared_hashing
from llm_jax.checkpoints.array_writers import OrbaxWriter
from llm_jax.checkpoints.metadata import CheckpointMetadata, Lineage
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.data.batch_source import DataPosition
from llm_jax.runtime import meeting, processes
from llm_jax.runtime.hardware import Machine
from llm_jax.runtime.lineage import RunLineage
from llm_jax.runtime.peers import TICK_SECONDS, Peers

HEARTBEAT_SECONDS = 300
SHUTDOWN_SECONDS = 60
COLUMNS = 256  # of every array; a host has one chunk of it
RUN = RunLineage('0.2.0', 'simulation', '2026-01-01 00:00:00+0000', '0.2.0',
                 Machine('1 x cpu', 1, 2, 'Linux', '3.11', jax.__version__), {})


@dataclasses.dataclass
class Host:
  """One process of the simulated run.

  client: of jax's coordinator.
  saved_to: where its arrays are written.
  read: names of the files that it has hashed.
  lost: what it would have said as it ended, because another is lost.
  """
  rank: int
  client: Any = None
  peers: Peers | None = None
  saved_to: pathlib.Path = pathlib.Path()
  read: list[str] = dataclasses.field(default_factory=list)
  lost: list[str] = dataclasses.field(default_factory=list)


class _Here(threading.local):
  """Which host the thread belongs to."""
  host: Host | None = None


_here = _Here()
_Thread = threading.Thread


def here() -> Host:
  if _here.host is None:
    raise RuntimeError('this thread is of no simulated host')
  return _here.host


class _HostThread(_Thread):
  """A thread is of the host whose thread has started it."""

  def start(self) -> None:
    self._host = _here.host
    super().start()

  def run(self) -> None:
    _here.host = self._host
    super().run()


class _GlobalState:
  """What jax knows of the coordinator, by the host that asks."""

  @property
  def client(self) -> Any:
    return here().client

  @property
  def process_id(self) -> int:
    return here().rank


class _CountOfEach:
  """`itertools.count`, of every host by itself."""

  def __init__(self):
    self._counts: dict[int, Iterator[int]] = {}

  def __next__(self) -> int:
    return next(self._counts.setdefault(here().rank, itertools.count()))


@contextlib.contextmanager
def many_hosts(count: int) -> Iterator[None]:
  """In the body `jax` and the module globals of this package belong to the host of the thread that asks."""
  def read_entries(folder: pathlib.Path, names: Any, durable: bool = False) -> Any:
    here().read.extend(names)
    return _read_entries(folder, names, durable)

  _read_entries = shared_hashing.read_entries
  replacements = (
    (jax, 'process_index', lambda: here().rank), (jax, 'process_count', lambda: count),
    (distributed, 'global_state', _GlobalState()), (threading, 'Thread', _HostThread),
    (processes, '_barriers', _CountOfEach()), (saver, '_saves', _CountOfEach()),
    (shared_hashing, '_verifications', _CountOfEach()), (shared_hashing, 'read_entries', read_entries),
    (shared_hashing, 'MIN_BYTES', 0),
    (OrbaxWriter, '_checkpointer', lambda writer: HostCheckpointer(here().rank)),
  )
  with contextlib.ExitStack() as stack:
    for owner, name, value in replacements:
      stack.enter_context(mock.patch.object(owner, name, value))
    yield


# ---------------------------------------------------------------------------------------------- joining
class TogetherPeers(Peers):
  """`Peers` that share one thread with those of all hosts in this process. With a thread each a thousand hosts would
  fight for the cores of this machine."""

  def start(self) -> None:
    _Watch.of_this_process().add(self)


class _Watch:
  """What the thread of `Peers` does, for many of them."""
  _made: '_Watch | None' = None
  _making = threading.Lock()

  def __init__(self):
    self._selector = selectors.DefaultSelector()
    self._all: list[TogetherPeers] = []
    _Thread(target=self._watch, name='peers', daemon=True).start()

  @classmethod
  def of_this_process(cls) -> '_Watch':
    with cls._making:
      cls._made = cls._made or cls()
      return cls._made

  def add(self, peers: TogetherPeers) -> None:
    self._selector.register(peers.links[0], selectors.EVENT_READ, peers)
    self._all.append(peers)

  def _watch(self) -> None:
    ticked_at = time.monotonic()
    while True:
      for key, _ in self._selector.select(TICK_SECONDS):
        key.data._receive(0)
        if not key.data.links[0].is_open:
          self._selector.unregister(key.fileobj)
      if time.monotonic() - ticked_at >= TICK_SECONDS:
        ticked_at = time.monotonic()
        for peers in self._all:
          if not peers._closed.is_set():
            peers._tick()


def meet(host: Host, count: int, port: int) -> None:
  """The host's link to process 0, or process 0's to all."""
  links = (meeting.receive_all(port, count) if host.rank == 0
           else {0: meeting.come('coordinator', f'localhost:{port}', '127.0.0.1', port, host.rank)})
  make_peers = Peers if host.rank == 0 else TogetherPeers
  host.peers = make_peers(host.rank, links, end_process=lambda code, line, others: host.lost.append(line))
  host.peers.start()


def start_coordinator(count: int, port: int) -> Any:
  return _jax.get_distributed_runtime_service(f'[::]:{port}', count, heartbeat_timeout=HEARTBEAT_SECONDS,
                                              shutdown_timeout=SHUTDOWN_SECONDS)


def connect(host: Host, port: int) -> None:
  """The host's client of jax's coordinator, once all have one."""
  host.client = _jax.get_distributed_runtime_client(
    f'127.0.0.1:{port}', host.rank, init_timeout=meeting.MEETING_SECONDS, heartbeat_timeout=HEARTBEAT_SECONDS,
    shutdown_timeout=SHUTDOWN_SECONDS, use_compression=True)
  host.client.connect()


def leave(host: Host) -> None:
  assert host.peers is not None
  host.client.shutdown()
  host.peers.close()


def run_hosts(ranks: range, script: Callable[[Host], Any]) -> list[Any]:
  """What the script returns on each host, by rank; every host is a thread.   Raises what the first of them raises."""
  def run(rank: int) -> Any:
    _here.host = Host(rank)
    return script(_here.host)

  with concurrent.futures.ThreadPoolExecutor(len(ranks)) as pool:
    return list(pool.map(run, ranks))


# ---------------------------------------------------------------------------------------------- checkpoints
@dataclasses.dataclass(frozen=True)
class Array:
  """An array of the state, of which every host holds as many rows."""
  shape: tuple[int, ...]
  dtype: str = 'float32'

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * 4


def make_state(count: int, num_arrays: int, rows: int) -> dict[str, Any]:
  """rows: of each array, a host."""
  return {'params': {f'block_{i}': {'w': Array((count * rows, COLUMNS))} for i in range(num_arrays)}}


def make_metadata(step: int) -> CheckpointMetadata:
  return CheckpointMetadata({}, 'pretrain', False, 'sha256', Lineage(RUN), DataPosition(step, {'data': 'sha256'}))


def value_of(rank: int, number: int, rows: int) -> np.ndarray:
  """The rows of array `number` that a host holds."""
  numbers = np.arange(rows * COLUMNS, dtype=np.float32).reshape(rows, COLUMNS)
  return numbers + 1_000 * rank + number


class HostCheckpointer:
  """Stands for Orbax's on one host."""

  def __init__(self, rank: int):
    self._rank = rank

  def save(self, path: pathlib.Path, args: Any) -> None:
    host = here()
    if self._rank == 0:
      path.mkdir()
      (path / 'array_metadatas').mkdir()
    processes.barrier('folder')
    leaves = args.item['params']
    part = OcdbtProcessSpec(str(self._rank))
    options = tensorstore_utils.OcdbtKvStoreWriteOptions(mode=tensorstore_utils.OcdbtWriteMode.WRITE)
    spec = tensorstore_utils.build_kvstore_tspec(path.as_posix(), ocdbt_process_spec=part, ocdbt_write_options=options)
    store = ts.KvStore.open(spec, context=tensorstore_utils.get_ts_context(use_ocdbt=True)).result()
    writing = []
    for number, (name, leaf) in enumerate(sorted(leaves.items())):
      shape = leaf['w'].shape
      rows = shape[0] // jax.process_count()
      key = f'params.{name}.w'
      if self._rank == 0:
        writing.append(store.write(f'{key}/.zarray', _zarray(shape, rows)))
      writing.append(store.write(f'{key}/{self._rank}.0', value_of(self._rank, number, rows).tobytes()))
    for each in writing:
      each.result()
    (path / 'array_metadatas' / f'process_{host.rank}').write_text(json.dumps({name: 1 for name in leaves}))
    host.saved_to = path

  def wait_until_finished(self) -> None:
    host = here()
    host.client.wait_at_barrier(f'written_{host.saved_to.parent.name}', 600_000)
    if self._rank == 0:
      merge(host.saved_to)

  def close(self) -> None:
    pass


def merge(folder: pathlib.Path) -> None:
  """What Orbax does on process 0 once all have written."""
  context = tensorstore_utils.get_ts_context(use_ocdbt=True)
  asyncio.run(ocdbt_utils.merge_ocdbt_per_process_files(epath.Path(folder), context, use_zarr3=False))


def _zarray(shape: tuple[int, ...], rows: int) -> bytes:
  return json.dumps({
    'zarr_format': 2, 'shape': shape, 'chunks': [rows, shape[1]], 'dtype': '<f4', 'compressor': None, 'order': 'C',
    'fill_value': None, 'filters': None, 'dimension_separator': '.'}).encode()


def read_array(checkpoint: pathlib.Path, name: str) -> np.ndarray:
  """An array of a saved state, such as `params.block_1.w`."""
  spec = {'driver': 'zarr', 'kvstore': tensorstore_utils.build_kvstore_tspec((checkpoint / 'state').as_posix(), name)}
  return ts.open(spec, open=True, context=tensorstore_utils.get_ts_context(use_ocdbt=True)).result().read().result()


def make_store(folder: pathlib.Path, keep: int = 1) -> CheckpointStore:
  return CheckpointStore(folder / 'pretrain', keep, warn=lambda text: None)
