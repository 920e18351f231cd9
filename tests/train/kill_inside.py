"""Trains, and is killed in the middle of one function.

  python -m tests.train.kill_inside MOMENT CALL SHARE FLAGS...    FLAGS: those of launch.train

MOMENT is a name of `MOMENTS`, CALL counts the calls of its function from 1, and SHARE in [0, 1] is of the time that the
call before took: so much later SIGKILL comes, or when the function returns, if that is earlier.
"""
import functools
import importlib
import os
import signal
import sys
import threading
import time

from launch import runtime, train

MOMENTS = {  # name -> module and method
  'sampling': ('llm_jax.rollout.sampling', 'Sampler.answers'),
  'scoring': ('llm_jax.rollout.rewards', 'Rewards.score'),
  'log-probabilities': ('llm_jax.rollout.source', 'RolloutSource._log_probs'),
  'learning': ('llm_jax.train.compile', 'CompiledStep.__call__'),
  'the next batch': ('llm_jax.rollout.source', 'RolloutSource.next'),
}
FIRST_CALL_SECONDS = 1.0  # what the first call is taken to last, of which nothing is known


class Killed:
  """A function that ends its process in one of its calls."""

  def __init__(self, function, call: int, share: float):
    self.function = function
    self.left = call
    self.share = share
    self.seconds = FIRST_CALL_SECONDS

  def __call__(self, *args, **kwargs):
    self.left -= 1
    since = time.perf_counter()
    if self.left == 0:
      threading.Timer(self.share * self.seconds, kill).start()
    found = self.function(*args, **kwargs)
    if self.left == 0:
      kill()
    self.seconds = time.perf_counter() - since
    return found


def kill() -> None:
  os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: str, call: int, share: float) -> None:
  """Puts a `Killed` in the place of the moment's function."""
  module, path = MOMENTS[moment]
  owner_name, name = path.split('.')
  owner = getattr(importlib.import_module(module), owner_name)
  killed = Killed(getattr(owner, name), call, share)
  setattr(owner, name, functools.wraps(killed.function)(lambda *args, **kwargs: killed(*args, **kwargs)))


def main() -> int:
  requests = runtime.start()  # first, as `launch.train` does
  moment, call, share = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
  prepare = runtime.prepare

  def prepare_and_arm(cpu_devices: int | None = None) -> None:
    prepare(cpu_devices)
    arm(moment, call, share)  # after jax has been set up, which it imports

  runtime.prepare = prepare_and_arm
  return train.main([sys.argv[0], *sys.argv[4:]], requests)


if __name__ == '__main__':
  sys.exit(main())
