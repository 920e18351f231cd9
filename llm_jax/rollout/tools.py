"""Functions that a model may call while it answers.

A call stands in what the model says as JSON between tags, as Qwen and Hermes have it; what the functions return goes
back to the model as the next message. Named chat templates have no message for it: there it is one of the user.

  <tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>
  <tool_response>
  5
  </tool_response>
"""
import json
import pathlib
import re
import select
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

from llm_jax.config.errors import ConfigError, require
from llm_jax.runtime import activity

CALL = re.compile(r'<tool_call>(.*?)</tool_call>', re.DOTALL)
WORKER = pathlib.Path(__file__).with_name('tool_worker.py')
START_SECONDS = 60.0  # that importing the functions may take
MOST_CHARACTERS = 4_000  # of a result


class Call(NamedTuple):
  """A call as the model wrote it.   problem: why it is none, or ''."""
  name: str
  arguments: dict[str, Any]
  problem: str = ''


def calls_in(text: str) -> list[Call]:
  """The calls that stand in what the model says, in their order."""
  return [_read_call(body) for body in CALL.findall(text)]


def _read_call(body: str) -> Call:
  try:
    found = json.loads(body)
  except ValueError as error:
    return Call('', {}, f'error: the call is no JSON: {error}')
  if not isinstance(found, dict) or not isinstance(found.get('name'), str):
    return Call('', {}, 'error: write a call as {"name": ..., "arguments": {...}}')
  arguments = found.get('arguments', found.get('parameters', {}))  # the second is Llama 3.1's word
  if not isinstance(arguments, dict):
    return Call('', {}, 'error: give the arguments by their names, {"name": ..., "arguments": {...}}')
  return Call(found['name'], arguments)


class Tools:
  """Calls a user's functions in a process of their own, which a call that takes too long ends.

  paths: 'FILE.py:FUNCTION' each.   seconds: that a call may take.

  Raises (all methods):
    ConfigError: the functions cannot be imported.
  """

  def __init__(self, paths: Sequence[str], seconds: float):
    self._paths = list(paths)
    self._seconds = seconds
    self._process: subprocess.Popen[str] | None = None

  def results(self, calls: Sequence[Call]) -> str:
    """What the calls of one answer return, a line or more each. Errors and time limits are texts too."""
    return '\n'.join(call.problem or self._call(call) for call in calls)

  def _call(self, call: Call) -> str:
    process = self._process or self._start()
    assert process.stdin is not None
    activity.beat()
    process.stdin.write(json.dumps({'name': call.name, 'arguments': call.arguments}) + '\n')
    process.stdin.flush()
    try:
      return self._read(process, self._seconds)[:MOST_CHARACTERS]
    except TimeoutError:
      self.close()
      return f'error: it took longer than {self._seconds:g} s'
    except EOFError:
      self.close()
      return 'error: the function ended its process'

  def _start(self) -> subprocess.Popen[str]:
    command = [sys.executable, str(WORKER), *self._paths]
    said = tempfile.TemporaryFile('w+')  # what the functions print, which nobody else reads
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True)
    self._process = process
    try:
      self._read(process, START_SECONDS)
    except (TimeoutError, EOFError):
      self.close()
      said.seek(0)
      last = said.read().strip().splitlines()[-1:] or ['it takes too long']
      raise ConfigError('rollout.tools', self._paths, f'cannot be imported: {last[0]}') from None
    return process

  def _read(self, process: subprocess.Popen[str], seconds: float) -> str:
    """What the next line says.   Raises TimeoutError, and EOFError where the process has ended."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    if not ready:
      raise TimeoutError
    line = process.stdout.readline()
    if not line:
      raise EOFError
    return json.loads(line)

  def close(self) -> None:
    """Ends the process; the next call starts another."""
    if self._process is not None:
      self._process.kill()
      self._process.communicate()
      self._process = None


def check_functions(paths: Sequence[str]) -> None:
  """Refuses files that are not there."""
  for i, path in enumerate(paths):
    file = path.rpartition(':')[0]
    require(pathlib.Path(file).is_file(), f'rollout.tools[{i}]', path, 'no such file')
