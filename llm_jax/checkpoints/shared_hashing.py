"""The files of a checkpoint, hashed by all processes of a run: process 0 asks, each reads its share.

One process would need minutes for the state of a large model, at every save and at every start, longer than the notice
that a machine gets which is taken away. Questions and answers go through the coordinator's store of keys and not
through the devices, so that a thread can hash while a step runs:

<key>/<question>/<rank>         the names of the files that process `rank` is to read
<key>/<question>/<rank>/found   their entries, or an error
"""
import contextlib
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

T = TypeVar('T')

MIN_BYTES = 64 << 20  # less is read by process 0 alone
WRITTEN_BY = re.compile(r'(^|/)ocdbt\.process_(\d+)/')  # where Orbax writes what one process saves
PATIENT_SECONDS = 60  # that a process waits before it says for whom
END = 'end'
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
    sizes = {name: (folder / name).lstat().st_size for name in names}
    if sum(sizes.values()) < MIN_BYTES:
      return read_entries(folder, names, durable)
    below = folder.relative_to(root).as_posix()
    shares = split(sizes, jax.process_count())
    question = _key(key, next(numbers))
    for rank, share in enumerate(shares[1:], start=1):
      client.key_value_set(f'{question}/{rank}', json.dumps([below, share, durable]))
    found = dict(zip(shares[0], read_entries(folder, shares[0], durable), strict=True))
    for rank, share in enumerate(shares[1:], start=1):
      found |= zip(share, _read_answer(client, question, rank), strict=True)
    return [found[name] for name in names]

  try:
    yield read
  finally:
    last = _key(key, next(numbers))
    for rank in range(1, jax.process_count()):
      client.key_value_set(f'{last}/{rank}', END)


def answer(key: str, root: Path) -> None:
  """On the other processes: reads what process 0 asks for until it has ended its body of `asking`."""
  client = multihost.get_jax_distributed_client()
  rank = jax.process_index()
  for number in itertools.count():
    question = f'{_key(key, number)}/{rank}'
    said = _wait_for(client, question, of=0)
    if said == END:
      return
    below, share, durable = json.loads(said)
    try:
      reply: Any = [entry.to_json() for entry in read_entries(root / below, share, durable)]
    except (CheckpointError, OSError) as error:
      reply = one_line(error)
    client.key_value_set(f'{question}/found', json.dumps(reply))


def split(sizes: dict[str, int], count: int) -> list[list[str]]:
  """The names in as many shares of about the same number of bytes. Of files that Orbax wrote on one process, that one
  gets them: its machine may still have them in memory."""
  shares: list[list[str]] = [[] for _ in range(count)]
  num_bytes = [0] * count
  for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
    written = WRITTEN_BY.search(name)
    writer = int(written.group(2)) if written else count
    rank = writer if writer < count else num_bytes.index(min(num_bytes))
    shares[rank].append(name)
    num_bytes[rank] += sizes[name]
  return shares


def _read_answer(client: Any, question: str, rank: int) -> list[FileEntry]:
  found = json.loads(_wait_for(client, f'{question}/{rank}/found', of=rank))
  client.key_value_delete(f'{question}/{rank}/found')
  if isinstance(found, str):
    raise CheckpointError(found)
  return [FileEntry.from_json(entry) for entry in found]


def _wait_for(client: Any, key: str, of: int) -> str:
  """The value of a key, once process `of` has set it. A process that dies ends this one through jax."""
  start = time.monotonic()
  while True:
    try:
      return client.blocking_key_value_get(key, 1_000 * PATIENT_SECONDS)
    except jax.errors.JaxRuntimeError as error:
      seconds = time.monotonic() - start
      if 'DEADLINE_EXCEEDED' not in str(error) or seconds > processes.BARRIER_SECONDS:
        raise
      rank = jax.process_index()
      if rank in (0, 1):  # of a thousand that wait for process 0, one says so
        print(f'process {rank} has waited {seconds:.0f} s for process {of} (hashing a checkpoint)',
              file=sys.stderr, flush=True)


def _key(key: str, number: int) -> str:
  return f'llm_jax_{key}/{number}'
