"""A process that calls a user's functions, one line of JSON for each call and each result. `tools.py` starts it and
ends it where a call takes too long.

  python tool_worker.py FILE.py:FUNCTION ...
"""
import importlib.util
import json
import sys
from collections.abc import Callable
from typing import Any


def load(path: str) -> tuple[str, Callable[..., Any]]:
  """The name of a function, and the function."""
  file, _, name = path.rpartition(':')
  spec = importlib.util.spec_from_file_location(f'tools_{abs(hash(file))}', file)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return name, getattr(module, name)


def result(functions: dict[str, Callable[..., Any]], name: str, arguments: dict[str, Any]) -> str:
  """What the function returns as text: a text as it is, anything else as JSON. An error is a text too."""
  if name not in functions:
    return f'error: there is no function {name!r}, only {", ".join(functions)}'
  try:
    found = functions[name](**arguments)
    return found if isinstance(found, str) else json.dumps(found, default=str)
  except Exception as error:  # whatever a function of the user's raises
    return f'error: {type(error).__name__}: {error}'


def main() -> None:
  out = sys.stdout
  sys.stdout = sys.stderr  # what the functions print is no result
  functions = dict(load(path) for path in sys.argv[1:])
  print(json.dumps('ready'), file=out, flush=True)
  for line in sys.stdin:
    call = json.loads(line)
    print(json.dumps(result(functions, call['name'], call['arguments'])), file=out, flush=True)


if __name__ == '__main__':
  main()
