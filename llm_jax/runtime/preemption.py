"""Requests to stop: finish the step, save, exit with EXIT_PREEMPTED; where nothing waits to be saved, exit at once."""
import contextlib
import signal
import threading
from collections.abc import Callable, Generator
from types import FrameType, TracebackType
from typing import Any

from llm_jax.runtime.links import Message
from llm_jax.runtime.peers import Peers
from llm_jax.runtime.requests import REQUESTS, leave, tell

EXIT_PREEMPTED = 75  # EX_TEMPFAIL: saved and stopped on request; the same command goes on from there
EXIT_INTERRUPTED = 128 + signal.SIGINT  # as a shell has it
SAVED = 'everything saved'
INTERRUPTED = '\nInterrupted: saving after this step; once more to stop at once.'

Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


class Preempted(Exception):
  """The machine asked the run to stop; everything is saved."""


class Preemption:
  """Turns the first request to stop into a moment at which all processes of the run save and stop, or leave at once.

  Inside of `steps` there is state to save: all processes stop after the same step, the next that none has checked yet.
  Outside of it nothing waits to be saved (a corpus is tokenised, a step compiled, a result computed). Where that is so
  for one process it is so for all: no step can end before all have come to it, and none leaves `steps` before what it
  made is saved. Then all leave at once.

  More requests change nothing, but a second SIGINT interrupts at once, which leaves the last committed checkpoint
  intact.

  leave: ends the process where nothing waits to be saved; called in the thread that hears the requests (see
    `requests.Requests`) or in that of the peers. None, for a run inside of another program such as a notebook: as a
    context manager, this takes the signals over, and Preempted is raised where one arrives.
  """

  def __init__(self, leave: Callable[[], None] | None = None):
    self._leave = leave
    self._peers: Peers | None = None
    self._changed = threading.Condition()  # its lock is one that a handler may take again
    self._is_asked = False
    self._is_interrupted = False
    self._is_held = False  # while the processes agree, none goes further
    self._is_leaving = False
    self._in_steps = False
    self._num_checks = 0  # over all stages
    self._stop_at: int | None = None  # the check at which all save
    self._positions: dict[int, int | None] | None = None  # process 0: of the processes that have answered
    self._earlier_handlers: dict[int, Handler] = {}

  def connect(self, peers: Peers) -> None:
    """From here on all processes of the run stop together."""
    self._peers = peers
    peers.on('stop', lambda rank, message: self._hear(rank))
    peers.on('position', self._note_position)
    peers.on('ended', self._note_end)
    peers.on('decision', lambda rank, message: self._obey(message['decision']))

  def __enter__(self) -> 'Preemption':
    # Python installs no handlers in other threads; some notebooks run their cells so.
    if self._leave is None and threading.current_thread() is threading.main_thread():
      for number in REQUESTS:
        if signal.getsignal(number) != signal.SIG_IGN:
          self._earlier_handlers[number] = signal.signal(number, lambda number, frame: self.request(number))
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    for number, handler in self._earlier_handlers.items():
      signal.signal(number, handler)
    self._earlier_handlers.clear()

  @contextlib.contextmanager
  def steps(self) -> Generator[None, None, None]:
    """The body makes state that must be saved before the run may stop: a request waits until `requested` is called."""
    with self._changed:
      self._changed.wait_for(lambda: not self._is_held and not self._is_leaving)
      self._in_steps = True
    yield
    with self._changed:
      self._changed.wait_for(lambda: not self._is_held)
      self._in_steps = False
      was_asked = self._stop_at is not None
    if was_asked:  # after the last call of `requested`
      raise Preempted(SAVED)

  def requested(self) -> bool:
    """Whether to save and stop now. Every process must call it equally often, and all get the same answer."""
    with self._changed:
      self._changed.wait_for(lambda: not self._is_held)
      self._num_checks += 1
      return self._stop_at is not None and self._num_checks >= self._stop_at

  def request(self, number: int) -> None:
    """Answers a signal of REQUESTS."""
    if number == signal.SIGINT:
      self._interrupt()
    if self._is_asked:
      return
    self._is_asked = True
    if self._peers is None:
      self._obey(_decide([self._hold()]))
    elif self._peers.rank == 0:
      self._ask_all()
    else:
      self._peers.send({'stop': True})

  def _interrupt(self) -> None:
    if self._is_interrupted and not self._is_leaving:
      tell('')  # after the terminal's ^C
      if self._leave is None:
        raise KeyboardInterrupt
      leave(EXIT_INTERRUPTED)
    self._is_interrupted = True
    if self._in_steps:
      tell(INTERRUPTED)

  # ---------------------------------------------------------------------------------------------- all agree
  def _hold(self) -> int | None:
    """Lets the main thread go no further; gives the number of its checks, or None where nothing waits to be saved."""
    with self._changed:
      self._is_held = True
      return self._num_checks if self._in_steps else None

  def _obey(self, decision: int | None) -> None:
    """Goes on to the check of that number and saves then; None: leaves."""
    with self._changed:
      self._stop_at = decision
      self._is_leaving = decision is None
      self._is_held = False
      self._changed.notify_all()
    if decision is None:
      if self._leave is None:
        raise Preempted(SAVED)
      # In a thread of its own, for that of the peers must see the others leave.
      threading.Thread(target=self._leave, name='leaving', daemon=True).start()

  def _hear(self, rank: int) -> None:
    """Process 0 is asked by another one, or asks this one."""
    self._is_asked = True
    if self._peers is not None and self._peers.rank == 0:
      self._ask_all()
    elif self._peers is not None:
      self._peers.send({'position': self._hold()})

  def _ask_all(self) -> None:
    peers = self._peers
    with self._changed:
      if peers is None or self._positions is not None:  # another one has asked already
        return
      self._positions = {0: self._hold()}
      self._positions |= {rank: None for rank in peers.links if rank not in peers.others}
    peers.send({'stop': True})
    self._decide_together()

  def _note_position(self, rank: int, message: Message) -> None:
    with self._changed:
      if self._positions is not None:
        self._positions.setdefault(rank, message['position'])
    self._decide_together()

  def _note_end(self, rank: int, message: Message) -> None:
    """A process that has come to its end has nothing to save."""
    self._note_position(rank, {'position': None})

  def _decide_together(self) -> None:
    peers = self._peers
    with self._changed:
      positions = self._positions
      if peers is None or positions is None or not self._is_held:  # not asked, or decided already
        return
      if len(positions) <= len(peers.links):
        return
      decision = _decide(list(positions.values()))
    peers.send({'decision': decision})
    self._obey(decision)


def _decide(positions: list[int | None]) -> int | None:
  """The check at which all save: the first that no process has come to. None where one of them is outside of steps."""
  found = [position for position in positions if position is not None]
  return max(found) + 1 if len(found) == len(positions) else None
