"""Processes that lose one of them end with its name; who is behind is found.

The links are real sockets, in one process.
"""
import contextlib
import os
import socket
import subprocess
import sys
import time

import pytest

from llm_jax.runtime import activity, peers
from llm_jax.runtime.links import Link
from llm_jax.runtime.peers import EXIT_LOST, Behind, Peers
from llm_jax.runtime.preemption import Preemption


class Process:
  """One of the processes: what it would print at its end, and its exit code."""

  def __init__(self, rank, links):
    self.lines = []
    self.codes = []
    self.peers = Peers(rank, links, self.end)

  def end(self, code, line, await_others):
    self.codes.append(code)
    self.lines.append(line)


@pytest.fixture
def three(monkeypatch):
  """Three processes that have met."""
  monkeypatch.setattr(peers, 'TICK_SECONDS', 0.05)
  links = {}
  others = []
  for rank in (1, 2):
    here, there = connected()
    links[rank] = Link(here)
    others.append(Process(rank, {0: Link(there)}))
  found = [Process(0, links), *others]
  for each in found:
    each.peers.start()
  yield found
  for each in found:
    each.peers._closed.set()


def connected():
  with socket.create_server(('127.0.0.1', 0)) as listener:
    there = socket.create_connection(listener.getsockname())
    here, _ = listener.accept()
  return here, there


def wait_until(condition):
  deadline = time.monotonic() + 20
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


@pytest.mark.parametrize('dead', [0, 1, 2])
def test_all_others_end_with_the_name_of_the_one_that_died(three, dead, monkeypatch):
  monkeypatch.setattr(three[dead].peers, '_lose', lambda *_: None)  # it is gone: it tells nobody whom it has lost
  for link in three[dead].peers.links.values():
    link._connection.shutdown(socket.SHUT_RDWR)  # as the kernel does, whatever it died of
  survivors = [each for each in three if each.peers.rank != dead]
  wait_until(lambda: all(each.codes for each in survivors))
  for each in survivors:
    assert each.codes == [EXIT_LOST]
    assert each.lines[0].startswith(f'error: process {dead} has died: it was killed, or its machine is gone')


def test_without_looking_for_the_dead_nobody_would_end(three, monkeypatch):
  """The mutation: the test above has a point."""
  seen = []
  for each in three:
    monkeypatch.setattr(each.peers, '_lose', lambda rank, *_: seen.append(rank))
  three[2].peers.links[0]._connection.shutdown(socket.SHUT_RDWR)
  wait_until(lambda: 2 in seen)
  assert not any(each.codes for each in three)


def test_one_that_ends_of_an_error_says_of_which(three, monkeypatch):
  monkeypatch.setattr(peers, 'GRACE_SECONDS', 0.1)
  three[2].peers.close(1, 'OSError: the disk is gone')
  wait_until(lambda: three[0].codes and three[1].codes)
  for each in three[:2]:
    assert each.lines[0].startswith('error: process 2 has ended with exit code 1: OSError: the disk is gone. This ')


def test_those_that_end_as_they_should_take_nobody_along(three):
  for each in three[1:]:
    each.peers.close()
  time.sleep(0.5)
  assert not any(each.codes for each in three) and three[0].peers.others == []


def test_one_that_is_silent_is_lost(three, monkeypatch):
  monkeypatch.setattr(peers, 'SILENCE_SECONDS', 0.5)
  monkeypatch.setattr(three[1].peers, '_tick', lambda: None)  # it is stopped
  wait_until(lambda: three[0].codes and three[2].codes)
  assert 'process 1 has not answered for 0 s: it is stopped, or its machine is gone' in three[2].lines[0].replace(
    'for 1 s', 'for 0 s')


def test_who_is_behind(three):
  first = three[0].peers
  begun = activity.now().num_started
  first._activities[1] = activity.Activity('computes', begun, 5, patience=1)
  first._activities[2] = activity.Activity('reads its batch', begun - 1, 7, patience=1)
  assert first._find_behind() == [Behind(2, 'reads its batch', False)]
  first._activities[2] = activity.Activity('waits', begun, 7, waits=True)
  assert 2 not in [each.rank for each in first._find_behind()]
  first._heard_at[2] -= 10
  assert first._find_behind() == [Behind(2, 'waits', True)]


def preemptions(three):
  """One in each process, with what has become of it."""
  left = []
  found = []
  for each in three:
    preemption = Preemption(leave=lambda rank=each.peers.rank: left.append(rank))
    preemption.connect(each.peers)
    found.append(preemption)
  return found, left


@pytest.mark.parametrize('asked', [0, 1])
def test_all_stop_after_the_same_step_whoever_is_asked(three, asked):
  found, left = preemptions(three)
  with contextlib.ExitStack() as stack:
    for number, preemption in enumerate(found):
      context = preemption.steps()
      context.__enter__()
      stack.callback(context.gen.close)
      for _ in range(3 + number):
        assert not preemption.requested()
    found[asked].request(15)
    wait_until(lambda: all(each._stop_at is not None for each in found))
    assert {each._stop_at for each in found} == {6}  # one has made five checks
    assert not left


def test_all_leave_where_one_has_nothing_to_save(three):
  found, left = preemptions(three)
  context = found[0].steps()
  context.__enter__()
  found[0].requested()
  found[2].request(1)
  wait_until(lambda: sorted(left) == [0, 1, 2])
  context.gen.close()


ENDS = """
import threading
from llm_jax.runtime import peers
printed = threading.Event()
def go_on():
  for _ in range(9):
    print('step', flush=True)
  printed.set()
threading.Thread(target=go_on, daemon=True).start()
peers._end_process(70, 'error: process 3 has died', printed.wait)
"""


def test_the_line_that_names_it_comes_after_what_is_printed_while_the_others_end():
  done = subprocess.run([sys.executable, '-c', ENDS], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                        env={**os.environ, 'PYTHONPATH': os.getcwd()})
  assert done.returncode == 70
  assert done.stdout.splitlines() == [*['step'] * 9, 'error: process 3 has died']
