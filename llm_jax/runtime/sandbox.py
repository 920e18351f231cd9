"""Runs a program that a model wrote: in a process of its own, without network, children, or files to write, and with
little time and memory.

It keeps a clumsy program from harm. It is no wall against one that is written to break out: run such in a virtual
machine.
"""
import dataclasses
import enum
import os
import pathlib
import secrets
import signal
import subprocess
import sys
import tempfile

RUNNER = pathlib.Path(__file__).with_name('sandbox_runner.py')
STOPPED = 70  # the exit code of a program that did what is not allowed, as `sandbox_runner.py` has it
MOST_OUTPUT = 10_000  # bytes of what it says that are kept


class End(enum.Enum):
  """How a program ended."""
  PASSED = 'passed'
  FAILED = 'failed'  # an exception, a wrong result among them, or an exit before its end
  STOPPED = 'stopped'  # it did what is not allowed
  OUT_OF_TIME = 'out of time'
  OUT_OF_MEMORY = 'out of memory'


@dataclasses.dataclass(frozen=True)
class Outcome:
  """reason: the last line of what the program said, such as its exception."""
  end: End
  reason: str = ''


@dataclasses.dataclass(frozen=True)
class Limits:
  """seconds: of the clock.   memory_bytes: of its address space."""
  seconds: float = 10.0
  memory_bytes: int = 2 * 2**30


def run_program(program: str, limits: Limits = Limits()) -> Outcome:  # noqa: B008  # frozen
  """Runs a program to its end.

  It is a fresh Python without site packages, in an empty folder that is removed. Only one that reaches its last line
  has passed: an exit before it, by whatever code, has not.
  """
  word = secrets.token_hex(16)  # that the runner says behind the program's last line
  with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, '-I', '-S', '-B', str(RUNNER), str(limits.memory_bytes), str(int(limits.seconds) + 1)]
    process = subprocess.Popen(command, cwd=folder, env={'PATH': '', 'HOME': folder}, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    try:
      said, _ = process.communicate(f'{word}\n{program}'.encode('utf-8', 'surrogatepass'), timeout=limits.seconds)
    except subprocess.TimeoutExpired:
      return Outcome(End.OUT_OF_TIME)
    finally:
      _end_all(process)
  lines = said[-MOST_OUTPUT:].decode('utf-8', 'replace').strip().splitlines()
  last = lines[-1] if lines else ''
  if process.returncode == 0 and last == word:
    return Outcome(End.PASSED)
  return Outcome(_end_of(process.returncode, last), last[:200])


def _end_of(code: int, last: str) -> End:
  if code == STOPPED:
    return End.STOPPED
  if last.startswith('MemoryError'):
    return End.OUT_OF_MEMORY
  return End.OUT_OF_TIME if code == -signal.SIGXCPU else End.FAILED


def _end_all(process: subprocess.Popen[bytes]) -> None:
  """Ends the process and what it may have left in its group."""
  try:
    os.killpg(process.pid, signal.SIGKILL)
  except (ProcessLookupError, PermissionError):  # it has ended, and nothing is left
    pass
  process.communicate()
