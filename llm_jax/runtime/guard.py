"""What looks after a process that trains: requests to stop, the watchdog, and the other processes of the run."""
import dataclasses
from typing import NoReturn

from llm_jax.runtime.peers import Peers
from llm_jax.runtime.preemption import Preemption
from llm_jax.runtime.requests import leave
from llm_jax.runtime.watchdog import Watchdog


@dataclasses.dataclass
class Guard:
  """peers: None for a run of one process."""
  preemption: Preemption
  watchdog: Watchdog
  peers: Peers | None = None

  def connect(self, peers: Peers) -> None:
    """Once the processes have met: they stop together, and know of each other."""
    self.peers = peers
    self.watchdog.rank = peers.rank
    self.watchdog.peers = peers
    self.preemption.connect(peers)

  def await_verdict(self) -> None:
    """Before an error is shown: where it comes from the end of another process, that is what is shown instead."""
    if self.peers is not None:
      self.peers.await_verdict()

  def close(self, code: int = 0, words: str = '') -> None:
    """The process ends with exit code `code`, of what `words` say."""
    if self.peers is not None:
      self.peers.close(code, words)
    self.watchdog.close()

  def leave(self, code: int) -> NoReturn:
    """Ends the process at once, process 0 after the others."""
    if self.peers is not None:
      self.peers.close(code)
    leave(code)
