"""64 simulated hosts in this process, which agree, save, lose a file and lose a host; prints what each found."""
import json
import pathlib
import socket
import sys
import time

from benchmarks import host_simulation as simulation
from llm_jax.config.errors import ConfigError
from llm_jax.runtime import processes
from llm_jax.runtime.errors import FileError

HOSTS, ARRAYS, ROWS = 64, 3, 4
DIFFERENT = (5, 6, 7, 20)
DAMAGED, DEAD = 40, 9
LOST_SECONDS = 10


def broken() -> None:
  raise FileError('the disk is full')


def script(host: simulation.Host, port: int, folder: pathlib.Path) -> dict:
  simulation.meet(host, HOSTS, port)
  service = simulation.start_coordinator(HOSTS, port) if host.rank == 0 else None
  simulation.connect(host, port)
  said = {'gathered': processes.gather(10 * host.rank), 'first': processes.on_first(lambda: [host.rank, 'é'])}
  processes.agree('config', 'the same')
  try:
    processes.agree('code', 'edited' if host.rank in DIFFERENT else 'the same')
  except ConfigError as error:
    said['different'] = str(error)
  try:
    processes.on_first(broken)
  except FileError as error:
    said['failed'] = str(error)
  store = simulation.make_store(folder, keep=2)
  for step in (1, 2):
    host.read.clear()
    store.save(step, simulation.make_state(HOSTS, ARRAYS, ROWS), simulation.make_metadata(step), wait=True)
  said['read'] = list(host.read)
  said['newest'] = store.latest_valid().step
  if host.rank == 0:
    damage(store.folder)
  said['fallback'] = store.latest_valid().step
  processes.barrier('end')
  if host.rank == DEAD:
    host.peers.links[0].close()
  deadline = time.monotonic() + LOST_SECONDS
  while host.rank != DEAD and not host.lost and time.monotonic() < deadline:
    time.sleep(0.05)
  processes.barrier('all know')
  said['lost'] = list(host.lost)
  simulation.leave(host)
  if service is not None:
    service.shutdown()
  return said


def damage(folder: pathlib.Path) -> None:
  """Changes a byte of what one host has written."""
  path = max((folder / '00000002' / 'state' / f'ocdbt.process_{DAMAGED}' / 'd').iterdir(),
             key=lambda path: path.stat().st_size)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def main(folder: pathlib.Path) -> None:
  with socket.create_server(('', 0)) as probe:
    port = probe.getsockname()[1]
  with simulation.many_hosts(HOSTS):
    said = simulation.run_hosts(range(HOSTS), lambda host: script(host, port, folder))
  print(json.dumps(said), flush=True)


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
