"""The processes of a run know of each other who lives, who is behind, and who ended of what.

Each process has a link to process 0, which passes on what all must know. The kernel closes the links of a process that
dies, however that happens, so the others hear of it at once; one that no longer answers is found by its silence.
"""
import dataclasses
import selectors
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from llm_jax.runtime import activity
from llm_jax.runtime.activity import Activity
from llm_jax.runtime.links import Link, Message, encode
from llm_jax.runtime.requests import leave

EXIT_LOST = 70  # EX_SOFTWARE, as a process that stalls: the same command goes on from the newest checkpoint
NO_FAILURE = (0, 75)  # exit codes of a process that ended as it should
TICK_SECONDS = 0.5  # between two signs of life
QUIET_SECONDS = 2.5  # without one: when somebody is behind, it is this process
SILENCE_SECONDS = 60  # without one: the process is stopped, or its machine is gone
GRACE_SECONDS = 5  # for the others to end by themselves, when one has said that it ends
FAREWELL_SECONDS = 10  # for process 0, with which jax's coordinator ends, to wait for the others
LINGER_SECONDS = 0.5  # so that whoever looks at the order sees the lost one end first
MOST_NAMED = 8
DIED = 'has died: it was killed, or its machine is gone'

Handler = Callable[[int, Message], None]


@dataclasses.dataclass(frozen=True)
class Behind:
  """A process that the others wait for.   is_quiet: whether it gives no sign of life."""
  rank: int
  doing: str
  is_quiet: bool


class Peers:
  """The other processes of the run.

  rank: of this process.
  links: to every other process where this is process 0, else to process 0.
  end_process: called where another process is lost: (exit code, line to print, what waits for the others).
  """

  def __init__(self, rank: int, links: dict[int, Link],
               end_process: Callable[[int, str, Callable[[], None]], None] | None = None):
    self.rank = rank
    self.links = links
    self.beat_at = time.monotonic()  # when any other process was last seen to go on
    self._end_process = end_process or _end_process
    self._heard_at = dict.fromkeys(links, time.monotonic())
    self._activities = {other: Activity() for other in links}
    self._behind: list[Behind] = []  # as process 0 sees it
    self._beats = 0  # of the others, all together
    self._gone: set[int] = set()
    self._is_lost = False  # the first process that was lost is the one to name
    self._handlers: dict[str, Handler] = {}
    self._is_leaving = False
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._watch, name='peers', daemon=True)

  def start(self) -> None:
    self._thread.start()

  @property
  def others(self) -> list[int]:
    """Ranks of the processes that this one has a link to and that have not ended."""
    return [other for other in self.links if other not in self._gone]

  def on(self, kind: str, handler: Handler) -> None:
    """Lets `handler(rank, message)` answer the messages that have an entry `kind`, in the thread of the peers."""
    self._handlers[kind] = handler

  def send(self, message: Message, to: Iterable[int] | None = None) -> None:
    """Sends to the processes `to`; None: to all that this one has a link to."""
    line = encode(message)
    for other in self.others if to is None else to:
      self.links[other].send_encoded(line)

  # ---------------------------------------------------------------------------------------------- who is behind
  def behind(self) -> list[Behind]:
    """The processes that the run waits for, this one perhaps among them."""
    if self.rank == 0:
      return self._find_behind()
    if time.monotonic() - self._heard_at[0] > QUIET_SECONDS:
      return [Behind(0, self._activities[0].doing, True)]
    return self._behind

  def _find_behind(self) -> list[Behind]:
    now = time.monotonic()
    quiet = [other for other in self.others if now - self._heard_at[other] > QUIET_SECONDS]
    if quiet:
      return [Behind(other, self._activities[other].doing, True) for other in quiet]
    every = {0: activity.now()} | {other: self._activities[other] for other in self.others}
    lowest = min(each.num_started for each in every.values())
    last = {rank: each for rank, each in every.items() if each.num_started == lowest}
    busy = {rank: each for rank, each in last.items() if not each.waits}
    return [Behind(rank, each.doing, False) for rank, each in (busy or last).items()]

  # ---------------------------------------------------------------------------------------------- the end
  def close(self, code: int = 0, words: str = '') -> None:
    """Says that this process ends with exit code `code`, of what `words` say; what becomes of the others is nothing to
    it from now on. Process 0 waits until they have ended too, where the run ends early: jax ends them with it."""
    if self._is_leaving:
      return
    self._is_leaving = True
    self.send({'ended': code, 'words': words})
    if code != 0:
      self._await_others()
    self._closed.set()

  def await_verdict(self) -> None:
    """Waits a while for news that another process is lost, which may be why something has failed here; such news ends
    this process."""
    time.sleep(GRACE_SECONDS)
    if self._is_lost:  # it is about to be shown
      time.sleep(GRACE_SECONDS + FAREWELL_SECONDS)

  def _await_others(self) -> None:
    deadline = time.monotonic() + FAREWELL_SECONDS
    while self.rank == 0 and time.monotonic() < deadline:
      answering = [other for other in self.others if time.monotonic() - self._heard_at[other] < QUIET_SECONDS]
      if not answering:  # those that are stopped do not end
        return
      time.sleep(0.05)

  def _lose(self, rank: int, words: str, grace: float = 0) -> None:
    """Another process is gone, and the run with it: all are told, and this one ends after `grace` seconds."""
    self._gone.add(rank)
    if self._is_leaving or self._is_lost:
      return
    self._is_lost = True
    if self.rank == 0:
      self.send({'lost': rank, 'words': words, 'grace': grace})
    # In a thread of its own, for this one must see the others end.
    timer = threading.Timer(grace, self._end_after, (rank, words))
    timer.daemon = True
    timer.start()

  def _end_after(self, rank: int, words: str) -> None:
    if self._is_leaving:
      return
    self._is_leaving = True
    self._end_process(EXIT_LOST, f'error: process {rank} {words}. This one, process {self.rank}, ends too (exit code '
                      f'{EXIT_LOST}); the same command goes on from the newest checkpoint', self._await_others)

  # ---------------------------------------------------------------------------------------------- the thread
  def _watch(self) -> None:
    selector = selectors.DefaultSelector()
    for other, link in self.links.items():
      selector.register(link, selectors.EVENT_READ, other)
    ticked_at = looked_at = time.monotonic()
    while not self._closed.is_set():
      events = selector.select(TICK_SECONDS)
      now = time.monotonic()
      if now - looked_at > QUIET_SECONDS:  # this process was stopped itself: it cannot tell who was silent
        self._heard_at = dict.fromkeys(self._heard_at, now)
      looked_at = now
      for key, _ in events:
        self._receive(key.data)
        if not self.links[key.data].is_open:
          selector.unregister(key.fileobj)
      if now - ticked_at >= TICK_SECONDS:
        ticked_at = now
        self._tick()

  def _receive(self, other: int) -> None:
    link = self.links[other]
    for message in link.receive():
      self._heard_at[other] = time.monotonic()
      self._understand(other, message)
    if not link.is_open and other not in self._gone:
      self._lose(other, DIED)

  def _understand(self, other: int, message: Message) -> None:
    match message:
      case {'activity': dict(fields), **news}:
        self._activities[other] = Activity(**fields)
        self._hear_news(news)
      case {'ended': int(code), 'words': str(words)}:
        self._gone.add(other)
        if code not in NO_FAILURE:  # unless it hung or lost one, the others may have the same error to show
          grace = LINGER_SECONDS if code == EXIT_LOST else GRACE_SECONDS
          self._lose(other, f'has ended with exit code {code}: {words}', grace)
      case {'lost': int(rank), 'words': str(words), 'grace': grace}:
        self._lose(rank, words, grace)
    for kind, handler in self._handlers.items():
      if kind in message:
        handler(other, message)

  def _hear_news(self, news: dict[str, Any]) -> None:
    """What process 0 alone says with its sign of life."""
    match news:
      case {'beats': int(beats), 'behind': list(behind)}:
        self._note_beats(beats)
        self._behind = [Behind(*each) for each in behind]

  def _tick(self) -> None:
    """Gives a sign of life, and looks for those who give none."""
    now = activity.now()
    sign: Message = {'activity': vars(now)}
    if self.rank == 0:
      beats = sum(each.beats for each in self._activities.values())
      self._note_beats(beats)
      behind = [dataclasses.astuple(each) for each in self._find_behind()[:MOST_NAMED]]
      sign |= {'beats': beats + now.beats, 'behind': behind}
    self.send(sign)
    for other in self.others:
      silent = time.monotonic() - self._heard_at[other]
      if silent > SILENCE_SECONDS and not self._activities[other].holds_interpreter:
        self._lose(other, f'has not answered for {silent:.0f} s: it is stopped, or its machine is gone')

  def _note_beats(self, beats: int) -> None:
    if beats != self._beats:
      self._beats = beats
      self.beat_at = time.monotonic()


def _end_process(code: int, line: str, await_others: Callable[[], None]) -> None:
  await_others()  # the main thread may still print steps, or a report
  leave(code, line)
