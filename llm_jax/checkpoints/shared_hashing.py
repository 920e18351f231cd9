"""The files of a checkpoint, hashed by all processes of a run: process 0 asks, each reads its share.

One process would need minutes for the state of a large model, at every save and at every start, longer than the notice
that a machine gets which is taken away. Questions and answers go through the coordinator's store of keys and not
through the devices, so that a thread can hash while a step runs:

<key>/<question>/<rank>         the names of the files that process `rank` is to read
<key>/<question>                that they are there, or that no further question follows
<key>/<question>/found/<rank>   the entries of these files, or an error
"""
import contextlib
import heapq
import itertools
import json
import re
import sys
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
from orbax.checkpoint import multihost

from llm_jax.checkpoints.manifest import FileEntry, ReadEntries, read_entries
from llm_jax.runtime import activity, processes
from llm_jax.runtime.errors import CheckpointError, one_line
from llm_jax.runtime.files import size_of
from llm_jax.runtime.trees import for_each

T = TypeVar('T')

MIN_BYTES = 64 << 20  # less is read by process 0 alone
WRITTEN_BY = re.compile(r'(^|/)ocdbt\.process_(\d+)/')  # where Orbax writes what one process saves
PATIENT_SECONDS = 60  # that a process waits before it says for whom
READ, END = 'read', 'end'
WHAT = 'hashing a checkpoint'
_verifications = itertools.count()


def on_first_with_help(root: Path, function: Callable[[ReadEntries], T]) -> T:
  """`processes.on_first` for a function that reads files below `root` with what it is given: the other processes read
  their share of them."""
  if jax.process_count() == 1:
    return function(read_entries)
  key = f'verify_{next(_verifications)}'

  def ask() -> T:
    with asking(key, root) as read:
      return function(read)

  if jax.process_index() != 0:
    with activity.waiting():
      answer(key, root)
  return processes.on_first(ask)


@contextlib.contextmanager
def asking(key: str, root: Path) -> Generator[ReadEntries]:
  """On process 0: gives the function that reads files with the help of the other processes, which `answer` meanwhile.

  key: of no other body.   root: the files are below it.
  """
  if jax.process_count() == 1:
    yield read_entries
    return
  client = multihost.get_jax_distributed_client()
  numbers = itertools.count()

  def read(folder: Path, names: Sequence[str], durable: bool = False) -> list[FileEntry]:
    sizes = dict(zip(names, for_each(lambda name: size_of(folder / name), names), strict=True))
    if sum(sizes.values()) < MIN_BYTES:
      return read_entries(folder, names, durable)
    below = folder.relative_to(root).as_posix()
    shares = split(sizes, jax.process_count())
    question = _key(key, next(numbers))
    for rank, share in enumerate(shares[1:], start=1):
      client.key_value_set(f'{question}/{rank}', json.dumps([below, share, durable]))
    client.key_value_set(question, READ)
    own = _reply(folder, shares[0], durable)
    client.key_value_set(f'{question}/found/0', '')
    found = [own, *_collect(client, question)]
    entries: dict[str, FileEntry] = {}
    for share, reply in zip(shares, found, strict=True):
      if isinstance(reply, str):
        raise CheckpointError(reply)
      entries |= zip(share, map(FileEntry.from_json, reply), strict=True)
    return [entries[name] for name in names]

  try:
    yield read
  finally:
    client.key_value_set(_key(key, next(numbers)), END)


def answer(key: str, root: Path) -> None:
  """On the other processes: reads what process 0 asks for until it has ended its body of `asking`."""
  client = multihost.get_jax_distributed_client()
  rank = jax.process_index()
  for number in itertools.count():
    question = _key(key, number)
    if _wait_for(client, question) == END:
      return
    below, share, durable = json.loads(client.key_value_try_get(f'{question}/{rank}'))
    reply = _reply(root / below, share, durable)
    client.key_value_set(f'{question}/found/{rank}', json.dumps(reply))
    _wait_for_all(client, question)


def _reply(folder: Path, share: Sequence[str], durable: bool) -> Any:
  """The entries of the files as JSON values, or an error's text."""
  try:
    return [entry.to_json() for entry in read_entries(folder, share, durable)]
  except (CheckpointError, OSError) as error:
    return one_line(error)


def _collect(client: Any, question: str) -> list[Any]:
  """What the processes from 1 upwards reply."""
  _wait_for_all(client, question)
  found = {int(path.rpartition('/')[2]): reply for path, reply in client.key_value_dir_get(f'{question}/found/')}
  client.key_value_delete(question)  # and all below it
  return [json.loads(found[rank]) for rank in range(1, jax.process_count())]


def split(sizes: dict[str, int], count: int) -> list[list[str]]:
  """The names in as many shares of about the same number of bytes. Of files that Orbax wrote on one process, that one
  gets them: its machine may still have them in memory."""
  shares: list[list[str]] = [[] for _ in range(count)]
  num_bytes = [0] * count
  unclaimed: list[str] = []
  for name in sizes:
    written = WRITTEN_BY.search(name)
    writer = int(written.group(2)) if written else count
    if writer < count:
      shares[writer].append(name)
      num_bytes[writer] += sizes[name]
    else:
      unclaimed.append(name)
  least = [(size, rank) for rank, size in enumerate(num_bytes)]
  heapq.heapify(least)
  for name in sorted(unclaimed, key=lambda name: (-sizes[name], name)):
    size, rank = least[0]
    shares[rank].append(name)
    heapq.heapreplace(least, (size + sizes[name], rank))
  return shares


def _wait_for_all(client: Any, question: str) -> None:
  """Waits until every process has read its share. One that dies ends the others through its peers."""
  with processes.naming_the_missing(client, f'{question}/found', WHAT):
    multihost.get_barrier_sync_fn()(key=question, timeout_ms=1_000 * processes.BARRIER_SECONDS)


def _wait_for(client: Any, question: str) -> str:
  """What process 0 says of a question, once it does. A process that dies ends this one through its peers."""
  start = time.monotonic()
  while True:
    try:
      return client.blocking_key_value_get(question, 1_000 * PATIENT_SECONDS)
    except jax.errors.JaxRuntimeError as error:
      seconds = time.monotonic() - start
      if 'DEADLINE_EXCEEDED' not in str(error) or seconds > processes.BARRIER_SECONDS:
        raise
      if jax.process_index() == 1:  # of a thousand that wait for process 0, one says so
        print(f'process 1 has waited {seconds:.0f} s for process 0 ({WHAT})', file=sys.stderr, flush=True)


def _key(key: str, number: int) -> str:
  return f'llm_jax_{key}/{number}'
