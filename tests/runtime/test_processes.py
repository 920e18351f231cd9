"""Several real processes on this machine: they join, agree, save together, stop together; and the launcher of them."""
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.config.errors import ConfigError
from llm_jax.runtime import activity, joining, meeting, processes
from llm_jax.runtime.preemption import EXIT_PREEMPTED, Preempted, Preemption

pytestmark = pytest.mark.usefixtures('signals_are_heard')
ROOT = Path(__file__).parents[2]


def launch(n, module, *args, **env):
  clean = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
  clean |= {'PYTHON': sys.executable, 'MODULE': module, 'PYTHONPATH': str(ROOT), **env}
  return subprocess.Popen(['bash', str(ROOT / 'launch' / 'local.sh'), str(n), *map(str, args)], env=clean, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


class Finished(NamedTuple):
  """Processes that came to their end.

  code: of their launcher.   said: what each wrote as JSON.   folder: of their checkpoints.   output: all text.
  """
  code: int
  said: list[dict]
  folder: Path
  output: str


@pytest.fixture(scope='module')
def two(tmp_path_factory) -> Finished:
  """Two processes of two devices."""
  folder = tmp_path_factory.mktemp('cluster') / 'stage'
  process = launch(2, 'tests.runtime.processes_worker', folder, DEVICES_PER_PROCESS='2')
  output, _ = process.communicate(timeout=120)
  said: list[dict] = [{}, {}]
  for rank, written in re.findall(r'^\[([01])\] (\{.*)$', output, re.MULTILINE):
    said[int(rank)].update(json.loads(written))
  return Finished(process.returncode, said, folder, output)


def test_both_joined(two):
  assert two.code == EXIT_PREEMPTED, two.output
  assert [(s['processes'], s['devices']) for s in two.said] == [(2, 4), (2, 4)]


def test_they_agree_or_all_name_the_one_that_differs(two):
  said = two.said
  for s in said:
    assert s['agree'] == 'None'
    assert s['differ'].startswith('ConfigError: config = ') and 'differs from process 0 on process 1' in s['differ']


def test_a_folder_that_they_do_not_share_is_refused(two):
  said = two.said
  for rank, s in enumerate(said):
    assert s['shared'] == 'None' and s['left'] == []
    assert f'disk_of_{rank}: process 1 does not see what process 0 writes there' in s['apart'].replace("'", '')


def test_who_is_late_is_named(two):
  waits = re.findall(r'\[(\d)\] process (\d) has waited \d s for process (\d) \(late\)', two.output)
  assert set(waits) == {('0', '0', '1')} and 1 <= len(waits) <= 4, two.output  # at 0.2, 0.6, 1.4 s


def test_what_the_first_finds_all_know(two):
  said = two.said
  assert [s['on_first'] for s in said] == [{'rank': 0, 'text': 'é'}] * 2
  assert said[0]['fails'].startswith('ZeroDivisionError')
  assert said[1]['fails'].startswith('RuntimeError: process 0: ZeroDivisionError: ')
  for s in said:
    assert s['config'] == 'ConfigError: workdir = None: hint'
    assert s['checkpoint'] == 'CheckpointError: manifest.json: damaged'


def test_two_save_and_restore(two):
  said = two.said
  for s in said:
    assert s['empty'] == 'None' and s['steps'] == [30, 20] and s['found'] == 30 and s['samples'] == 30
    assert s['same'] is True


def test_each_hashes_its_own_files(two):
  first, second = (set(s['read']) for s in two.said)
  assert first | second == set(two.said[0]['files']) and not first & second
  own = {name for name in two.said[0]['files'] if 'ocdbt.process_1/' in name}
  assert own and own <= second


def test_two_fall_back_to_the_same_checkpoint(two):
  said = two.said
  assert [s['fallback'] for s in said] == [20, 20]
  assert [s['warned'] for s in said] == [1, 0]
  assert said[0]['same_fallback'] is said[1]['same_fallback'] is True


def test_a_failed_save_is_known_to_both(two):
  said = two.said
  assert 'step 40 was not saved' in said[0]['full'] and 'No space left' in said[0]['full']
  assert 'step 40 was not saved: process 0 says why' in said[1]['full']
  assert [s['after'] for s in said] == [20, 20]


def test_sigterm_to_one_stops_both_after_the_same_step(two):
  said = two.said
  assert said[0]['stopped'] == said[1]['stopped'] < 100


def test_one_process_restores_what_two_saved(two):
  found = CheckpointStore(two.folder).latest_valid()
  assert found.step == two.said[0]['stopped']
  np.testing.assert_array_equal(found.read()['w'], np.arange(64.0).reshape(16, 4) + found.step)
  whole = jax.sharding.NamedSharding(jax.make_mesh((8,), ('x',)), jax.P(None))
  state = found.restore({'params': {'w': jax.ShapeDtypeStruct((16, 4), np.float32, sharding=whole)},
                         'step': jax.ShapeDtypeStruct((), np.int32)})
  assert int(state['step']) == found.step


def test_a_process_that_cannot_write_its_arrays_ends_the_run(tmp_path):
  """The other waits for it inside of Orbax, and would for as long as a save may take."""
  process = launch(2, 'tests.checkpoints.lone_save_worker', tmp_path / 'stage', DEVICES_PER_PROCESS='1')
  try:
    output, _ = process.communicate(timeout=90)
  finally:
    process.terminate()
  assert process.returncode > 0  # 1, or jax's own where the other ends first
  assert '[1] said: ' in output and 'step 1 was not saved (disk full, or a limit on file size' in output
  assert CheckpointStore(tmp_path / 'stage').latest_valid() is None


LAUNCHED = """
import os, signal, sys, time
print(os.environ['LLM_JAX_PROCESS_ID'], os.environ['LLM_JAX_NUM_PROCESSES'], sys.argv[1:], flush=True)
if sys.argv[1] == 'stop':
  signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it saves already
  time.sleep(2.5 * int(os.environ['LLM_JAX_PROCESS_ID']))
  print('saved')
  sys.exit(75)
if sys.argv[1] == 'fail' and os.environ['LLM_JAX_PROCESS_ID'] == '1': sys.exit(3)
if sys.argv[1] == 'killed' and os.environ['LLM_JAX_PROCESS_ID'] == '1': os.kill(os.getpid(), 9)
if sys.argv[1] != 'end': time.sleep(600)
"""


@pytest.fixture
def program(tmp_path):
  (tmp_path / 'program.py').write_text(LAUNCHED)
  return {'PYTHONPATH': str(tmp_path), 'GRACE': '1'}


def test_local_passes_arguments_and_labels_lines(program):
  process = launch(3, 'program', 'end', '--a b', **program)
  output, _ = process.communicate(timeout=90)
  assert process.returncode == 0
  assert sorted(output.splitlines()) == [f"[{rank}] {rank} 3 ['end', '--a b']" for rank in range(3)]


def test_local_returns_the_failing_code_and_ends_the_others(program):
  process = launch(2, 'program', 'fail', **program)
  output, _ = process.communicate(timeout=90)
  assert process.returncode == 3
  assert output.splitlines()[-1].startswith('error: process 1 ended first: it ended with exit code 3, after "1 2 ')


def test_local_names_a_process_that_was_killed_last_of_all(program):
  process = launch(3, 'program', 'killed', **program | {'GRACE': '0'})
  output, _ = process.communicate(timeout=90)
  last = output.splitlines()[-1]
  assert process.returncode == 137
  assert last.startswith('error: process 1 ended first: it was ended by signal 9 (SIGKILL), after "1 3 [')
  assert last.endswith('exit codes of all: 137 137 137')


def test_local_lets_a_slower_process_finish_its_save(program):
  process = launch(2, 'program', 'stop', **program)
  output, _ = process.communicate(timeout=90)
  assert process.returncode == EXIT_PREEMPTED and '[1] saved' in output


def test_local_forwards_sigterm(program):
  process = launch(2, 'program', 'wait', **program)
  for _ in range(2):
    process.stdout.readline()
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=90)
  assert process.returncode == 128 + signal.SIGTERM


def test_local_refuses_a_wrong_number():
  process = launch('none', 'program')
  assert 'usage' in process.communicate(timeout=90)[0] and process.returncode == 2


@pytest.mark.parametrize('env, message', [
    ({'LLM_JAX_COORDINATOR': 'localhost:1'}, 'num_processes = None'),
    ({'LLM_JAX_NUM_PROCESSES': 'two'}, "num_processes = 'two'"),
    ({'LLM_JAX_COORDINATOR': 'localhost:1', 'LLM_JAX_NUM_PROCESSES': '2', 'LLM_JAX_PROCESS_ID': '2'}, 'process_id = 2'),
    ({'LLM_JAX_COORDINATOR': 'localhost:99999', 'LLM_JAX_NUM_PROCESSES': '2', 'LLM_JAX_PROCESS_ID': '1'},
     "coordinator = 'localhost:99999': give host:port with a port from 1 to 65535"),
])
def test_join_refuses_half_a_description(monkeypatch, env, message):
  for name, value in env.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(ConfigError, match=message):
    joining.join()


def test_join_says_whom_it_waits_for_and_gives_up(monkeypatch, capsys):
  monkeypatch.setattr(meeting, 'MEETING_SECONDS', 0)
  with socket.socket() as nobody:  # has the port and does not listen
    nobody.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{nobody.getsockname()[1]}'
    with pytest.raises(ConfigError, match=f"coordinator = '{address}': nobody answers there after 0 s: start"):
      joining.join(address, 2, 1)
  assert capsys.readouterr().out == f'process 1 of 2: waiting for {address}\n'


def test_process_0_names_those_who_do_not_come(monkeypatch):
  monkeypatch.setattr(meeting, 'MEETING_SECONDS', 0.3)
  with pytest.raises(ConfigError, match='process 1, 2 has not come after 0.3 s: start it, or look at its output'):
    joining.join(f'127.0.0.1:{free_port()}', 3, 0)


def test_how_long_they_wait_is_the_clusters(monkeypatch):
  monkeypatch.setenv('LLM_JAX_JOIN_SECONDS', '0.2')
  with pytest.raises(ConfigError, match='process 1 has not come after 0.2 s'):
    joining.join(f'127.0.0.1:{free_port()}', 2, 0)
  monkeypatch.setenv('LLM_JAX_JOIN_SECONDS', 'long')
  with pytest.raises(ConfigError, match="LLM_JAX_JOIN_SECONDS = 'long': give a number of seconds above 0"):
    joining.join(f'127.0.0.1:{free_port()}', 2, 0)


class Store:
  """jax's store of keys, and what it was asked for."""

  def __init__(self, *ranks):
    self.keys = {f'key/{rank}' for rank in ranks}
    self.asked = []

  def key_value_try_get(self, key):
    self.asked.append(key)
    if key not in self.keys:
      raise jax.errors.JaxRuntimeError(f'NOT_FOUND: {key}')


@pytest.mark.parametrize('waiting, rank, is_lowest, num_asked', (
  (range(1, 1_000), 1, True, 1), (range(1_000), 999, False, 1), (range(1, 1_000), 999, False, 2),
  (range(9), 0, True, 0)))
def test_of_a_thousand_that_wait_one_asks_who_is_missing(waiting, rank, is_lowest, num_asked):
  store = Store(*waiting)
  assert processes._is_lowest(store, rank, 'key') == is_lowest
  assert len(store.asked) == num_asked


def test_they_meet_and_a_stranger_does_not_count():
  port = free_port()
  found = {}
  first = threading.Thread(target=lambda: found.update(meeting.receive_all(port, 2)), daemon=True)
  first.start()
  stranger = meeting._connect('coordinator', 'here', '127.0.0.1', port)
  stranger.send({'hello': 'who is there?'})
  link = meeting.come('coordinator', 'here', '127.0.0.1', port, 1)
  first.join()
  assert list(found) == [1]
  found[1].send({'said': 'hello'})
  assert link.receive() == [{'said': 'hello'}]


def test_those_who_have_come_name_the_one_who_has_not(monkeypatch):
  lines = []
  monkeypatch.setattr(meeting, 'MEETING_SECONDS', 1.5)
  monkeypatch.setattr(meeting, 'tell', lines.append)
  monkeypatch.setattr(meeting, 'leave', lambda code: sys.exit(code))
  port = free_port()

  def receive() -> None:
    with pytest.raises(ConfigError, match='process 2 has not come after 1.5 s'):
      meeting.receive_all(port, 3)

  first = threading.Thread(target=receive)
  first.start()
  beats = activity.now().beats
  with pytest.raises(SystemExit) as ended:
    meeting.come('coordinator', 'here', '127.0.0.1', port, 1)
  first.join()
  assert ended.value.code == 70
  assert activity.now().beats > beats  # while process 0 waits, it is not this one that hangs
  [line] = lines
  assert line.startswith('error: process 0 has ended while it waited for process 2, which has not come')


def free_port():
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


@pytest.mark.parametrize('env, many', [
    ({}, False),
    ({'SLURM_NTASKS': '4', 'SLURM_STEP_NODELIST': 'a,b'}, True),
    ({'SLURM_NTASKS': '4'}, False),  # inside an allocation, but not started by srun
    ({'SLURM_NTASKS': '1', 'SLURM_STEP_NODELIST': 'a'}, False),
    ({'OMPI_COMM_WORLD_SIZE': '2'}, True),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, False),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, True),
    ({'KUBERNETES_SERVICE_HOST': 'x'}, False),
    ({'KUBERNETES_SERVICE_HOST': 'x', 'JOB_COMPLETION_INDEX': '0'}, True),
])
def test_launchers(env, many):
  assert joining._launched_as_many(env) is many


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_requests_ask_once_and_twice_does_no_harm(number):
  before = signal.getsignal(number)
  with Preemption() as preemption, pytest.raises(Preempted), preemption.steps():
    assert not preemption.requested()
    os.kill(os.getpid(), number)
    if number != signal.SIGINT:
      os.kill(os.getpid(), number)
    assert preemption.requested()
    if number == signal.SIGINT:
      with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
        time.sleep(1)
  assert signal.getsignal(number) is before


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_request_outside_of_steps_is_answered_at_once(number):
  with Preemption() as preemption:
    with preemption.steps():
      pass
    with pytest.raises(Preempted, match='everything saved'):
      os.kill(os.getpid(), number)
      time.sleep(10)
      pytest.fail('it went on')
    os.kill(os.getpid(), signal.SIGTERM)  # while it ends


def test_a_hangup_that_is_ignored_stays_ignored():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup starts a program
  try:
    with Preemption() as preemption:
      os.kill(os.getpid(), signal.SIGHUP)
      with preemption.steps():
        assert not preemption.requested()
  finally:
    signal.signal(signal.SIGHUP, before)
