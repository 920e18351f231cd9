"""What process 0 does for a thousand hosts: meeting, agreeing, saving a checkpoint, finding it again.

python -m benchmarks.hosts [--hosts 1024] [--compared 64] [--arrays 36] [--folder DIR]

The hosts are threads of a few processes of this machine, see `host_simulation.py`; process 0 is a process of its own,
of which the seconds and the memory are those written. The hosts take their share of the same cores, so that seconds of
the clock are more than real hosts would need; seconds of the processor are those of process 0 alone. Small arrays are
saved, as many files as a real run has: what the bytes of a real one take is another matter.

Compared: the same with fewer hosts. Where time grows as the number of hosts does, the ratio a host is 1.
"""
import argparse
import contextlib
import json
import multiprocessing
import pathlib
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

from benchmarks.machine import machine
from benchmarks.records import ROOT, write_results

MEMORY = pathlib.Path('/dev/shm')  # one disk for a thousand hosts would be all that is measured
HOSTS_A_PROCESS = 64
PEERS_SECONDS = 5.0
ROWS = 4  # of an array, a host
ON_FIRST_BYTES = 10_000


class Stopwatch:
  """Seconds of the clock and of this process's processor, by what they went to; and the most memory until then."""

  def __init__(self):
    self.found: dict[str, dict[str, float]] = {}

  @contextlib.contextmanager
  def __call__(self, name: str, times: int = 1) -> Iterator[None]:
    wall, cpu = time.monotonic(), time.process_time()
    yield
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    self.found[name] = {'seconds': round(wall / times, 4), 'processor': round(cpu / times, 4),
                        'peak_mib': round(peak_mib(), 1)}

  def watch(self, owner: Any, name: str, what: str) -> Any:
    """What replaces a function by one that is timed, while the body runs."""
    function = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
      with self(what):
        return function(*args, **kwargs)

    return mock.patch.object(owner, name, timed)


def peak_mib() -> float:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_024


def script(host: Any, count: int, port: int, folder: pathlib.Path, arrays: int, watch: Stopwatch) -> None:
  """What every host does; `watch` is process 0's."""
  from benchmarks import host_simulation as simulation
  from llm_jax.checkpoints.shared_hashing import on_first_with_help
  from llm_jax.runtime import processes
  with watch('meet'):
    simulation.meet(host, count, port)
  service = simulation.start_coordinator(count, port) if host.rank == 0 else None
  with watch('connect'):
    simulation.connect(host, port)
  @contextlib.contextmanager
  def part(name: str, times: int = 1) -> Iterator[None]:
    processes.barrier('before')  # what the others still do belongs to the part before
    with watch(name, times):
      yield

  with part('barrier', 3):
    for _ in range(3):
      processes.barrier('timed')
  with part('agree'):
    processes.agree('config', 'the same')
  with part('gather'):
    gathered = processes.gather(host.rank)
  assert gathered == list(range(count))
  with part('on_first'):
    found = processes.on_first(lambda: 'x' * ON_FIRST_BYTES)
  assert len(found) == ON_FIRST_BYTES
  with part('a second of signs of life', int(PEERS_SECONDS)):
    time.sleep(PEERS_SECONDS)
  state = simulation.make_state(count, arrays, ROWS)
  store = simulation.make_store(folder)
  for step, name in ((1, 'save'), (2, 'save, and delete the one before')):
    with part(name):
      store.save(step, state, simulation.make_metadata(step), wait=True)
  with part('list'):
    assert store.steps() == [2]
  with part('resume'):
    newest = store.latest_valid()
  assert newest is not None and newest.step == 2
  with part('look again'):
    on_first_with_help(newest.path, newest._verify_if_touched)
  processes.barrier('end')
  simulation.leave(host)
  if service is not None:
    service.shutdown()


def run_process(ranks: range, count: int, port: int, folder: pathlib.Path, arrays: int) -> Stopwatch:
  """Runs hosts in this process."""
  from benchmarks import host_simulation as simulation
  from llm_jax.checkpoints import saver, store
  watch = Stopwatch()
  with contextlib.ExitStack() as stack:
    stack.enter_context(simulation.many_hosts(count))
    if ranks.start == 0:
      watch.found['start'] = {'seconds': 0.0, 'processor': 0.0, 'peak_mib': round(peak_mib(), 1)}
      for owner, name, what in ((simulation, 'merge', 'save: merge'), (saver, 'write_manifest', 'save: manifest'),
                                (saver, 'commit', 'save: commit'), (store, 'delete', 'save: delete')):
        stack.enter_context(watch.watch(owner, name, what))
    simulation.run_hosts(ranks, lambda host: script(host, count, port, folder, arrays,
                                                    watch if host.rank == 0 else Stopwatch()))
  return watch


def fork_processes(ranks: range, count: int, port: int, folder: pathlib.Path, arrays: int) -> None:
  """Runs hosts in several processes, which share the memory of what this one has imported."""
  from benchmarks import host_simulation
  del host_simulation
  forking = multiprocessing.get_context('fork')
  running = []
  for first in range(ranks.start, ranks.stop, HOSTS_A_PROCESS):
    some = range(first, min(first + HOSTS_A_PROCESS, ranks.stop))
    running.append(forking.Process(target=run_process, args=(some, count, port, folder, arrays)))
    running[-1].start()
  for process in running:
    process.join()
  if any(process.exitcode for process in running):
    raise RuntimeError(f'processes ended with {[process.exitcode for process in running]}')


def measure(count: int, arrays: int, folder: pathlib.Path) -> dict[str, Any]:
  """Starts the processes of `count` hosts; what process 0 took for each part."""
  with socket.create_server(('', 0)) as probe:
    port = probe.getsockname()[1]
  with tempfile.TemporaryDirectory(dir=folder) as below:
    def start(ranks: str) -> subprocess.Popen[str]:
      command = [sys.executable, '-m', 'benchmarks.hosts', f'--hosts={count}', f'--arrays={arrays}', f'--port={port}',
                 f'--ranks={ranks}', f'--folder={below}']
      return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE)

    running = [start('0:1'), start(f'1:{count}')]
    output, _ = running[0].communicate()
    codes = [process.wait() for process in running]
    if any(codes):
      raise RuntimeError(f'processes ended with {codes}')
    num_files = sum(1 for path in pathlib.Path(below).rglob('*') if path.is_file())
  return {'files': num_files, 'parts': json.loads(output.splitlines()[-1])}


def show(count: int, found: dict[str, Any]) -> None:
  print(f'{count} hosts, {found["files"]} files{"":20}{"seconds":>12}{"processor":>12}{"peak MiB":>12}')
  for name, part in found['parts'].items():
    print(f'  {name:40}' + ''.join(f'{value:12.3f}' for value in part.values()), flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--hosts', type=int, default=1_024)
  parser.add_argument('--compared', type=int, default=64, help='fewer hosts, which the figures are compared with')
  parser.add_argument('--arrays', type=int, default=36, help='of the saved state')
  parser.add_argument('--folder', type=pathlib.Path, default=MEMORY if MEMORY.is_dir() else tempfile.gettempdir(),
                      help='where the checkpoints are written')
  parser.add_argument('--output', type=pathlib.Path, help='default: a new file in benchmarks/results/hosts/')
  parser.add_argument('--ranks', help=argparse.SUPPRESS)  # FIRST:END: this is one of the processes
  parser.add_argument('--port', type=int, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.ranks:
    first, end = map(int, args.ranks.split(':'))
    run = run_process if first == 0 else fork_processes
    watch = run(range(first, end), args.hosts, args.port, args.folder, args.arrays)
    if watch is not None:
      print(json.dumps(watch.found))
    return
  results = {'machine': machine(), 'arrays': args.arrays, 'hosts': {}}
  for count in (args.compared, args.hosts):
    results['hosts'][str(count)] = measure(count, args.arrays, args.folder)
    show(count, results['hosts'][str(count)])
  write_results('hosts', results, args.output)


if __name__ == '__main__':
  main()
