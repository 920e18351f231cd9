"""Questions and answers out of source code: a function's signature and what it says of itself ask for its body.

The question is code, `def NAME(...):` and the first sentence of the docstring. The answer is one fenced block of Python
whose lines can be put right behind the question. A worse answer is the same body spoilt, or that of another function.
Everything is a function of the files alone.
"""
import ast
import functools
import os
import pathlib
import random
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from llm_jax.config.errors import require

FORMAT = 3  # raise it when the same files give other questions or answers
LONGEST_QUESTION, LONGEST_CODE = 240, 320  # characters; the two and a template are then about 200 tokens at most
SHARE = 13  # the files have so many times the text of the questions and answers, roughly
INDENT = '    '
# Not the library's own code: tests, installed packages, the reference manual as one string (pydoc_data), and
# (_sysconfigdata) what the build of this machine wrote.
NOT_LIBRARY = {'test', 'tests', 'idle_test', 'site-packages', 'dist-packages', '__pycache__', 'pydoc_data'}


class Function(NamedTuple):
  """`question` and `code`, its lines indented by four, are together the source of one function in `file`."""
  file: str
  question: str
  code: str


def source_files() -> dict[str, pathlib.Path]:
  """The running interpreter's own `.py` files, by their path in the library."""
  root = pathlib.Path(sysconfig.get_paths()['stdlib'])
  found = {}
  for folder, folders, names in os.walk(root):
    folders[:] = [name for name in folders if name not in NOT_LIBRARY]
    for name in names:
      if name.endswith('.py') and not name.startswith('_sysconfigdata'):
        path = pathlib.Path(folder) / name
        found[path.relative_to(root).as_posix()] = path
  require(len(found) > 100, 'source', str(root), 'this Python was installed without its source code: use another one')
  return dict(sorted(found.items()))


# ---------------------------------------------------------------------------------------------- the format
def fenced(code: str) -> str:
  return f'```python\n{code}\n```'


def code_in(answer: str) -> str | None:
  """The code of an answer that is exactly one fenced block of Python; None of any other."""
  block = re.fullmatch(r'```python\n(.*)\n```', answer.strip(), re.DOTALL)
  return block[1] if block and '```' not in block[1] else None


def parses(code: str) -> bool:
  """Whether it is Python, indented or not, with at least one statement; `return` may stand outside a function."""
  try:
    with warnings.catch_warnings(action='ignore'):
      return bool(ast.parse(textwrap.dedent(code)).body)
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return False


# ---------------------------------------------------------------------------------------------- functions
def functions(files: dict[str, pathlib.Path]) -> tuple[Function, ...]:
  """The short documented functions of all files, in the order of files and lines; of those that have the same question
  the first. A file that is not Python has none."""
  return _functions(tuple(files.items()))


@functools.lru_cache(maxsize=1)  # both splits of both sources read the same
def _functions(files: tuple[tuple[str, pathlib.Path], ...]) -> tuple[Function, ...]:
  found: dict[str, Function] = {}
  for name, path in files:
    try:
      with warnings.catch_warnings(action='ignore'):
        text = path.read_text(encoding='utf-8')
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
      continue
    lines = text.split('\n')
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for node in sorted(nodes, key=lambda node: node.lineno):
      if parts := _cut(node, lines):
        found.setdefault(parts[0], Function(name, *parts))
  return tuple(found.values())


def _cut(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> tuple[str, str] | None:
  """(question, code) of a function, or None where it has no docstring, nothing else, or too much."""
  documentation, first = ast.get_docstring(node), node.body[0]
  if not documentation or len(node.body) == 1 or first.col_offset != node.col_offset + len(INDENT):
    return None
  paragraph = ' '.join(documentation.split('\n\n')[0].split())
  sentence = re.split(r'(?<=[.!?])\s', paragraph)[0]
  margin = ' ' * node.col_offset
  whole = lines[node.lineno - 1:node.end_lineno]
  if not all(line.startswith(margin) for line in whole if line.strip()):
    return None
  whole = [line[len(margin):].rstrip() for line in whole]
  head, body = whole[:first.lineno - node.lineno], whole[first.end_lineno - node.lineno + 1:]
  question, code = '\n'.join([*head, f'{INDENT}"""{sentence}"""']), '\n'.join(body).strip('\n')
  fits = len(question) <= LONGEST_QUESTION and len(code) <= LONGEST_CODE
  sound = fits and head and '```' not in code and parses(code) and parses(f'{question}\n{code}')
  return (question, code) if sound else None


# ---------------------------------------------------------------------------------------------- rows
def conversations(files: dict[str, pathlib.Path]) -> Iterator[tuple[str, list[dict[str, str]]]]:
  """(file, messages): a question and the function's own body."""
  for function in functions(files):
    yield function.file, [{'role': 'user', 'content': function.question},
                          {'role': 'assistant', 'content': fenced(function.code)}]


def preferences(files: dict[str, pathlib.Path]) -> Iterator[tuple[str, dict[str, str]]]:
  """(file, {'prompt', 'chosen', 'rejected'}): a question, the function's own body, and a worse one."""
  in_file: dict[str, list[str]] = {}
  for function in functions(files):
    in_file.setdefault(function.file, []).append(function.code)
  for file, question, code in functions(files):
    yield file, {'prompt': question, 'chosen': fenced(code), 'rejected': fenced(worse(question, code, in_file[file]))}


def worse(question: str, code: str, others: list[str]) -> str:
  """Another code, drawn by the question: lines in another order, cut off, two names exchanged, or, one time in ten, one
  of `others`."""
  rng = random.Random(question)
  ways = [_shuffled, _cut_off, _names_exchanged]
  rng.shuffle(ways)
  if rng.random() < 0.1:
    ways.insert(0, lambda code, rng: rng.choice(others))
  for way in ways:
    spoilt = way(code, rng).strip('\n')
    if spoilt.strip() and spoilt != code:
      return spoilt
  return f'{INDENT}pass' if code != f'{INDENT}pass' else f'{INDENT}return'


def _shuffled(code: str, rng: random.Random) -> str:
  lines = code.split('\n')
  rng.shuffle(lines)
  return '\n'.join(lines)


def _cut_off(code: str, rng: random.Random) -> str:
  return code[:rng.randrange(len(code) // 4, max(len(code) * 3 // 4, 1))]


def _names_exchanged(code: str, rng: random.Random) -> str:
  """Two of its variables, each wherever the other was."""
  tree = ast.parse(textwrap.dedent(code))
  names = sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)})
  if len(names) < 2:
    return code
  a, b = rng.sample(names, 2)
  return re.sub(rf'\b({a}|{b})\b', lambda found: b if found[0] == a else a, code)
