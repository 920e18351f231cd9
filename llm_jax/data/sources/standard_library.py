"""Questions and answers out of source code: a function's signature and its documentation ask for its body.

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
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from llm_jax.config.errors import require

FORMAT = 3  # raise it when the same files give other questions or answers
LONGEST_QUESTION = 240  # characters; with the code and a template that is about 200 tokens at most
LONGEST_CODE = 320
SHARE = 13  # the files have so many times the text of the questions and answers, roughly
INDENT = '    '
LEAST_FILES = 100  # of a library that is installed with its source
BUILD_DATA = '_sysconfigdata'  # a file that the build of this machine wrote
Definition = ast.FunctionDef | ast.AsyncFunctionDef
# Not the library's own code: tests, installed packages, and the reference manual as one string (pydoc_data).
NOT_LIBRARY = {'test', 'tests', 'idle_test', 'site-packages', 'dist-packages', '__pycache__', 'pydoc_data'}


class Function(NamedTuple):
  """`question` and `code`, its lines indented by four, are together the source of one function in `file`."""
  file: str
  question: str
  code: str


def source_files() -> dict[str, pathlib.Path]:
  """The running interpreter's own `.py` files, by their path in the library."""
  root = pathlib.Path(sysconfig.get_paths()['stdlib'])
  found: dict[str, pathlib.Path] = {}
  for folder, subfolders, names in os.walk(root):
    subfolders[:] = [name for name in subfolders if name not in NOT_LIBRARY]  # os.walk enters those that are left
    for name in names:
      if name.endswith('.py') and not name.startswith(BUILD_DATA):
        path = pathlib.Path(folder) / name
        found[path.relative_to(root).as_posix()] = path
  has_source = len(found) > LEAST_FILES
  require(has_source, 'source', str(root), 'this Python was installed without its source code: use another one')
  return dict(sorted(found.items()))


# ---------------------------------------------------------------------------------------------- the format
def fenced(code: str) -> str:
  return f'```python\n{code}\n```'


def code_in(answer: str) -> str | None:
  """The code of an answer that is exactly one fenced block of Python; None of any other."""
  block = re.fullmatch(r'```python\n(.*)\n```', answer.strip(), re.DOTALL)
  if block is None or '```' in block[1]:
    return None
  return block[1]


def parses(code: str) -> bool:
  """Whether it is Python, indented or not, with at least one statement; `return` may stand outside a function."""
  try:
    with warnings.catch_warnings(action='ignore'):
      return bool(ast.parse(textwrap.dedent(code)).body)
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return False


# ---------------------------------------------------------------------------------------------- functions
def functions(files: Mapping[str, pathlib.Path]) -> tuple[Function, ...]:
  """The short documented functions of all files, in the order of files and lines; of those that have the same question
  the first. A file that is not Python has none."""
  return _functions(tuple(files.items()))


@functools.lru_cache(maxsize=1)  # both splits of both sources read the same
def _functions(files: tuple[tuple[str, pathlib.Path], ...]) -> tuple[Function, ...]:
  found: dict[str, Function] = {}
  for name, path in files:
    for function in _functions_in(name, path):
      found.setdefault(function.question, function)
  return tuple(found.values())


def _functions_in(name: str, path: pathlib.Path) -> Iterator[Function]:
  """Those of one file, in the order of their lines."""
  try:
    with warnings.catch_warnings(action='ignore'):
      text = path.read_text(encoding='utf-8')
      tree = ast.parse(text)
  except (SyntaxError, ValueError):
    return
  lines = text.split('\n')
  nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
  for node in sorted(nodes, key=lambda node: node.lineno):
    function = _function(name, node, lines)
    if function is not None:
      yield function


def _function(file: str, node: Definition, lines: Sequence[str]) -> Function | None:
  """None where it has no docstring, nothing else, or too much.   lines: of the whole file."""
  documentation = ast.get_docstring(node)
  docstring = node.body[0]
  is_indented_by_four = docstring.col_offset == node.col_offset + len(INDENT)
  if not documentation or len(node.body) == 1 or not is_indented_by_four:
    return None
  own_lines = _own_lines(node, lines)
  if own_lines is None:
    return None
  head = own_lines[:docstring.lineno - node.lineno]
  body = own_lines[_last_line(docstring) - node.lineno + 1:]
  question = '\n'.join([*head, f'{INDENT}"""{_first_sentence(documentation)}"""'])
  code = '\n'.join(body).strip('\n')
  return Function(file, question, code) if head and _is_usable(question, code) else None


def _own_lines(node: Definition, lines: Sequence[str]) -> list[str] | None:
  """The function's lines without the indentation of its `def`; None where one has less."""
  margin = ' ' * node.col_offset
  whole = lines[node.lineno - 1:_last_line(node)]
  if not all(line.startswith(margin) for line in whole if line.strip()):
    return None
  return [line[len(margin):].rstrip() for line in whole]


def _last_line(node: ast.stmt) -> int:
  return node.lineno if node.end_lineno is None else node.end_lineno


def _first_sentence(documentation: str) -> str:
  paragraph = ' '.join(documentation.split('\n\n')[0].split())
  return re.split(r'(?<=[.!?])\s', paragraph)[0]


def _is_usable(question: str, code: str) -> bool:
  """Whether both are short, and Python on their own terms: the code alone, and behind the question."""
  is_short = len(question) <= LONGEST_QUESTION and len(code) <= LONGEST_CODE
  return is_short and '```' not in code and parses(code) and parses(f'{question}\n{code}')


# ---------------------------------------------------------------------------------------------- rows
def conversations(files: Mapping[str, pathlib.Path]) -> Iterator[tuple[str, list[dict[str, str]]]]:
  """(file, messages): a question and the function's own body."""
  for function in functions(files):
    yield function.file, [{'role': 'user', 'content': function.question},
                          {'role': 'assistant', 'content': fenced(function.code)}]


def preferences(files: Mapping[str, pathlib.Path]) -> Iterator[tuple[str, dict[str, str]]]:
  """(file, {'prompt', 'chosen', 'rejected'}): a question, the function's own body, and a worse one."""
  in_file: dict[str, list[str]] = {}
  for function in functions(files):
    in_file.setdefault(function.file, []).append(function.code)
  for file, question, code in functions(files):
    rejected = worse(question, code, in_file[file])
    yield file, {'prompt': question, 'chosen': fenced(code), 'rejected': fenced(rejected)}


def rated_answers(files: Mapping[str, pathlib.Path]) -> Iterator[tuple[str, dict[str, Any]]]:
  """(file, {'prompt', 'completion', 'label'}): a question with the chosen answer of `preferences`, or with the
  rejected one. Which of them is drawn by the question, each as often."""
  for file, row in preferences(files):
    question = row['prompt']
    is_desirable = random.Random(f'rating of {question}').random() < 0.5
    completion = row['chosen'] if is_desirable else row['rejected']
    yield file, {'prompt': question, 'completion': completion, 'label': is_desirable}


def worse(question: str, code: str, others: list[str]) -> str:
  """Another code, drawn by the question: lines in another order, cut off, two names exchanged, or, one time in ten, one
  of `others`."""
  rng = random.Random(question)
  ways = [_shuffled, _cut_off, _names_exchanged]
  rng.shuffle(ways)
  if rng.random() < 0.1:
    ways.insert(0, lambda code, rng: rng.choice(others))
  for spoil in ways:
    spoilt = spoil(code, rng).strip('\n')
    if spoilt.strip() and spoilt != code:
      return spoilt
  nothing = f'{INDENT}pass'
  return nothing if code != nothing else f'{INDENT}return'


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
