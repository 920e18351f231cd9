"""How the processes of a run meet before jax joins them: all come to process 0, which knows who is missing."""
import contextlib
import socket
import sys
import time
from collections.abc import Generator
from typing import NoReturn

from llm_jax.config.errors import ConfigError
from llm_jax.runtime import activity
from llm_jax.runtime.links import Link
from llm_jax.runtime.peers import EXIT_LOST
from llm_jax.runtime.ranks import in_words
from llm_jax.runtime.requests import leave, tell
from llm_jax.runtime.seconds import seconds_of

MEETING_SECONDS = 300  # for all to come, where JOIN_VARIABLE does not say another time
JOIN_VARIABLE = 'LLM_JAX_JOIN_SECONDS'
PATIENT_SECONDS = 60  # that process 0 waits before it names the missing; the next time after twice as long
CONNECT_SECONDS = 5
RETRY_SECONDS = 1
POLL_SECONDS = 0.2
SAY_SECONDS = 0.5  # between two words of process 0 to those that have come
HELLO = 'llm_jax'  # what a process says first: whoever says anything else has found the port by chance


def meeting_seconds() -> float:
  """How long processes wait for all to come. 1,000 hosts that pull a container may need more than the default."""
  return seconds_of(JOIN_VARIABLE, MEETING_SECONDS)


def receive_all(port: int, num_processes: int, field: str = 'coordinator') -> dict[int, Link]:
  """Process 0: a link to each of the others, by rank, once all have come.

  Afterwards the port is free for jax: the links stay as they are.

  Raises:
    ConfigError: naming the port where it is taken, or the processes that have not come in time.
  """
  try:
    listener = _listen(port)
  except OSError as error:
    raise ConfigError(field, port, f'process 0 cannot listen on this port ({error.strerror}): name one that is free, '
                      'on the machine of process 0') from None
  with listener:
    return _receive_all(listener, num_processes, field)


def _receive_all(listener: socket.socket, num_processes: int, field: str) -> dict[int, Link]:
  links: dict[int, Link] = {}
  with _closing_on_error(links):
    _await_all(listener, num_processes, field, links)
  for link in links.values():
    link.send({'all': 'here'})
  return links


def _await_all(listener: socket.socket, num_processes: int, field: str, links: dict[int, Link]) -> None:
  """Fills `links`, and tells those that have come whom they wait for."""
  listener.settimeout(POLL_SECONDS)
  patience = meeting_seconds()
  since = time.monotonic()
  named_at, pause = since, PATIENT_SECONDS
  said_at = looked_at = since
  while len(links) < num_processes - 1:
    with contextlib.suppress(TimeoutError):
      connection, _ = listener.accept()
      _greet(Link(connection), num_processes, links)
    now = time.monotonic()
    if now - looked_at < POLL_SECONDS and len(links) < num_processes - 1:
      continue  # looking after each of a thousand that come would look at them a million times
    looked_at = now
    _check_alive(links)
    missing = in_words([rank for rank in range(1, num_processes) if rank not in links])
    activity.describe(f'waits for process {missing} to join')
    if missing and now - said_at > SAY_SECONDS:
      said_at = now
      for link in links.values():
        link.send({'missing': missing})
    if missing and now - named_at > pause:
      named_at, pause = now, 2 * pause
      print(f'process 0 has waited {now - since:.0f} s for process {missing} (to join)', file=sys.stderr, flush=True)
    if missing and now - since > patience:
      raise ConfigError(field, listener.getsockname()[1], f'process {missing} has not come after {patience:g} s: '
                        'start it, or look at its output')


def _listen(port: int) -> socket.socket:
  if socket.has_dualstack_ipv6():
    with contextlib.suppress(OSError):  # a machine without IPv6
      return socket.create_server(('', port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1_024)
  return socket.create_server(('', port), backlog=1_024)


def _greet(link: Link, num_processes: int, links: dict[int, Link]) -> None:
  """Keeps the link of a process of the run; closes any other."""
  match link.receive():
    case [{'hello': str(hello), 'rank': int(rank)}] if hello == HELLO and 0 < rank < num_processes:
      if rank in links:
        link.send({'refused': f'another process {rank} is there already'})
        link.close()
      else:
        links[rank] = link
    case _:
      link.close()


def _check_alive(links: dict[int, Link]) -> None:
  """Ends this process where one that had come has died again: it would be waited for in vain."""
  for rank, link in links.items():
    link.poll()
    if not link.is_open:
      for other in links.values():
        other.send({'gone': rank})
      _end_without(rank, 0)


def _end_with_first(missing: str, rank: int) -> NoReturn:
  """Process 0 has ended: in vain did it wait for the processes that are `missing`, or it has died by itself."""
  if not missing:
    _end_without(0, rank)
  tell(f'error: process 0 has ended while it waited for process {missing}, which has not come: look at its output. '
       f'This one, process {rank}, ends too (exit code {EXIT_LOST})')
  leave(EXIT_LOST)


def _end_without(gone: int, rank: int) -> NoReturn:
  tell(f'error: process {gone} has died while the others were still to come: it was killed, or stopped on request. '
       f'This one, process {rank}, ends too (exit code {EXIT_LOST})')
  leave(EXIT_LOST)


def come(field: str, address: str, host: str, port: int, rank: int) -> Link:
  """Any other process: its link to process 0, once all have come.

  While process 0 says whom it waits for, this one leaves it to process 0 to give up.

  Raises:
    ConfigError: nobody answers there, or process 0 has one of this rank already.
  """
  waits_for_first = f'waits for process 0 at {address}'
  activity.describe(waits_for_first)
  link = _connect(field, address, host, port)
  link.send({'hello': HELLO, 'rank': rank})
  missing = ''
  with _closing_on_error({0: link}):
    while True:
      messages = link.receive()
      if not messages:
        activity.describe(waits_for_first)  # it is stopped: it is the one to name
      for message in messages:
        match message:
          case {'all': _}:
            return link
          case {'refused': reason}:
            raise ConfigError('process_id', rank, f'process 0 does not let it join: {reason}')
          case {'missing': str(missing)}:
            activity.describe(f'waits for process {missing} to join')
            activity.beat()
          case {'gone': int(gone)}:
            _end_without(gone, rank)
      if not link.is_open:
        _end_with_first(missing, rank)


@contextlib.contextmanager
def _closing_on_error(links: dict[int, Link]) -> Generator[None, None, None]:
  try:
    yield
  except BaseException:
    for link in links.values():
      link.close()
    raise


def _connect(field: str, address: str, host: str, port: int) -> Link:
  """Tries until something listens there: it may not do so yet, or its name may not be known yet."""
  patience = meeting_seconds()
  deadline = time.monotonic() + patience
  while True:
    try:
      return Link(socket.create_connection((host, port), timeout=CONNECT_SECONDS))
    except (OSError, UnicodeError):
      if time.monotonic() >= deadline:
        raise ConfigError(field, address, f'nobody answers there after {patience:g} s: start process 0 there, or '
                          'name its address') from None
    time.sleep(RETRY_SECONDS)
