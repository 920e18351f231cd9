"""A run that is asked to stop at any moment ends with exit code 75 and resumes bitwise, several processes like one."""
import random
import signal
import subprocess

import pytest

from tests.train import lost_ranks, runs
from tests.train.stops import Stopper

pytestmark = pytest.mark.usefixtures('signals_are_heard')


@pytest.fixture(scope='module')
def stopper(tmp_path_factory):
  return Stopper(tmp_path_factory.mktemp('stops') / 'runs', random.Random(0))


def test_requests_at_random_moments(stopper):
  """The first run finds neither tokens nor compiled programs."""
  wrong = stopper.stop_one_run()
  assert not wrong, '\n'.join(wrong)
  assert any(stop.code == 75 for stop in stopper.stops)


@pytest.mark.slow
def test_many_requests_at_random_moments(stopper):
  wrong = []
  while sum(stop.code == 75 for stop in stopper.stops) < 40:
    wrong += stopper.stop_one_run()
  assert not wrong, '\n'.join(wrong)


@pytest.mark.slow
def test_many_kills_at_random_moments(tmp_path):
  stopper = Stopper(tmp_path / 'kills', random.Random(1), kill=True)
  wrong = []
  while sum(stop.code != 0 for stop in stopper.stops) < 40:
    wrong += stopper.stop_one_run()
  assert not wrong, '\n'.join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize('moment', ['compiling', 'training', 'evaluating'])
@pytest.mark.parametrize('rank', [0, 1])
def test_a_request_to_one_of_two_processes_stops_both(corpus, tmp_path, moment, rank):
  """While they compile they leave at once; in training both save the same step."""
  logs = [tmp_path / '0', tmp_path / '1']
  processes = lost_ranks.start_all(corpus, tmp_path / 'run', logs)
  lost_ranks.await_moment(moment, tmp_path / 'run', logs, processes)
  processes[rank].send_signal(signal.SIGTERM)
  codes = [process.wait(lost_ranks.MOMENT_SECONDS) for process in processes]
  output = '\n'.join(log.read_text() for log in logs)
  assert codes == [75, 75], output
  assert output.count('the same command goes on from there') == 2
  runs.run_processes(corpus, tmp_path / 'run', 2, devices=1)


def test_a_closed_terminal_saves_and_nohup_is_left_alone(corpus, tmp_path):
  """SIGHUP after some steps, with no checkpoint due before."""
  logs = [tmp_path / 'log']
  for ignored in (True, False):
    workdir = tmp_path / f'run{ignored}'
    command = runs.command(corpus, workdir, '--stage=first', '--config.checkpoints.every=0')
    with open(logs[0], 'w') as output:
      process = subprocess.Popen(['nohup', *command] if ignored else command, cwd=runs.ROOT, stdout=output,
                                 env=runs.environment(corpus.parent / 'cache', 1), stderr=subprocess.STDOUT)
    lost_ranks.await_moment('training', workdir, logs, [process])
    process.send_signal(signal.SIGHUP)
    code = process.wait(lost_ranks.MOMENT_SECONDS)
    assert code == (0 if ignored else 75), logs[0].read_text()
    assert len(list((workdir / 'checkpoints' / 'first').iterdir())) == 1
