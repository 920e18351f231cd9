"""Moments of a save at which tests end the process, to show that no checkpoint is lost."""
import os
import signal

VARIABLE = 'LLM_JAX_KILL_AT'
KILL_POINTS = ('before_write', 'mid_array', 'before_manifest', 'before_commit', 'after_commit', 'mid_gc')


def kill_point(name: str, step: int) -> None:
  """Ends the process by SIGKILL where the environment names this moment: LLM_JAX_KILL_AT=before_commit, or
  before_commit@40 for the save of step 40."""
  if os.environ.get(VARIABLE) in (name, f'{name}@{step}'):
    os.kill(os.getpid(), signal.SIGKILL)
