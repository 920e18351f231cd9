"""One of several processes dies, is stopped or hangs: the others end with its name in their last line."""
import itertools
import signal
import time

import pytest

from tests.train import lost_ranks

QUICK = [(2, 1, signal.SIGKILL, 'training')]
MATRIX = [(processes, rank, number, moment) for processes in (2, 4) for rank, number, moment in
          itertools.product(range(processes), lost_ranks.SIGNALS, lost_ranks.MOMENTS)]


@pytest.mark.parametrize('processes, rank, number, moment', [
  *QUICK, *(pytest.param(*each, marks=pytest.mark.slow) for each in MATRIX if each not in QUICK)])
def test_the_others_end_with_the_name_of_the_lost_one(corpus, tmp_path, processes, rank, number, moment, warmed):
  if number == signal.SIGSTOP and processes not in warmed:
    lost_ranks.warm(corpus, tmp_path, processes)
    warmed.add(processes)
  assert not lost_ranks.lose(corpus, tmp_path / 'run', processes, rank, number, moment)


@pytest.fixture(scope='module')
def warmed():
  """The numbers of processes whose programs are compiled."""
  return set()


STUCK = '''
import pathlib, signal, sys, time
from launch import train
def stuck(*_):
  while True:
    time.sleep(0.05)
signal.signal(signal.SIGUSR1, stuck)
sys.exit(train.cli())
'''


@pytest.mark.slow
@pytest.mark.parametrize('watched', [True, False])
def test_one_that_is_stuck_in_python_before_its_first_step_is_named(corpus, tmp_path, watched, warmed):
  """The mutation: without a watchdog all wait without end."""
  if 2 not in warmed:
    lost_ranks.warm(corpus, tmp_path, 2)
    warmed.add(2)
  program = STUCK if watched else STUCK.replace('def stuck', (
    'from llm_jax.runtime.watchdog import Watchdog\nWatchdog._stalled = lambda self, limit: None\ndef stuck'))
  (tmp_path / 'stuck_train.py').write_text(program)
  logs = [tmp_path / '0', tmp_path / '1']
  processes = lost_ranks.start_all(corpus, tmp_path / 'run', logs, program=tmp_path / 'stuck_train.py',
                                   stall_seconds=lost_ranks.STALL_SECONDS)
  try:
    lost_ranks.await_moment('compiling', tmp_path / 'run', logs, processes)
    processes[1].send_signal(signal.SIGUSR1)
    if not watched:
      time.sleep(30)
      assert [process.poll() for process in processes] == [None, None]
      return
    codes = [process.wait(lost_ranks.MOMENT_SECONDS) for process in processes]
    lasts = [log.read_text().rstrip().rpartition('\n')[2] for log in logs]
    assert codes == [70, 70]
    assert all(last.startswith('error: ') and 'process 1 ' in last for last in lasts), lasts
    assert 'in stuck' in logs[1].read_text()
  finally:
    for process in processes:
      process.kill()
      process.wait()
