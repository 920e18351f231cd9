"""Scores code that answers a function's signature and documentation, see `llm_jax/config/code_rewards.py`."""
import ast
import builtins
import functools
import re
import textwrap
import warnings
from collections.abc import Callable, Sequence

from llm_jax.config.code_rewards import (
  ArgumentsUsed,
  CodeReward,
  LengthNear,
  NamesDefined,
  PromptWords,
  PythonBlock,
  UniqueToPrompt,
)
from llm_jax.data.sources import standard_library
from llm_jax.rollout.sampling import Answer

LEAST_LETTERS = 4
COMMON_WORDS = frozenset({'return', 'this', 'that', 'with', 'from', 'given', 'when', 'else', 'none', 'true', 'false',
                          'self', 'import', 'pass', 'raise', 'yield', 'while', 'into', 'there', 'have', 'been'})


def code_scorer(reward: CodeReward) -> Callable[[Sequence[Answer]], list[float]]:
  """What computes such a reward of each of some answers, from 0 to 1."""
  if isinstance(reward, UniqueToPrompt):
    return unique_to_prompt
  score = _score_of(reward)

  def of_answer(answer: Answer) -> float:
    code = code_of(answer)
    return 0.0 if code is None else score(code, answer)

  return lambda answers: [of_answer(answer) for answer in answers]


def code_of(answer: Answer) -> str | None:
  """The code of an answer in form, without its indentation."""
  code = standard_library.code_in(answer.text) if answer.ended else None
  return textwrap.dedent(code) if code is not None and standard_library.parses(code) else None


def _score_of(reward: PythonBlock | NamesDefined | ArgumentsUsed | LengthNear | PromptWords
              ) -> Callable[[str, Answer], float]:
  match reward:
    case PythonBlock():
      return lambda code, answer: 1.0
    case NamesDefined(column):
      return lambda code, answer: names_defined(code, function_of(answer.prompt.text), reference(answer, column))
    case ArgumentsUsed():
      return lambda code, answer: arguments_used(code, function_of(answer.prompt.text))
    case LengthNear(column):
      return lambda code, answer: length_near(code, reference(answer, column))
    case PromptWords(enough):
      return lambda code, answer: prompt_words(code, function_of(answer.prompt.text), enough)


# ---------------------------------------------------------------------------------------------- each kind
def names_defined(code: str, function: ast.FunctionDef | ast.AsyncFunctionDef, reference: str) -> float:
  read, written = names(code)
  known = written | set(arguments(function)) | {function.name} | set(dir(builtins)) | names(reference)[0]
  return sum(name in known for name in read) / len(read) if read else 1.0


def arguments_used(code: str, function: ast.FunctionDef | ast.AsyncFunctionDef) -> float:
  own, (read, _) = arguments(function), names(code)
  return sum(name in read for name in own) / len(own) if own else 1.0


def length_near(code: str, reference: str) -> float:
  mine, theirs = len(code.strip()), len(reference.strip())
  return min(mine, theirs) / max(mine, theirs, 1)


def prompt_words(code: str, function: ast.FunctionDef | ast.AsyncFunctionDef, enough: int) -> float:
  asked = words(f'{function.name} {ast.get_docstring(function) or ""}') - words(' '.join(arguments(function)))
  tree = parsed(code)
  identifiers = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
  identifiers += [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
  count = min(enough, len(asked))
  return min(len(asked & words(' '.join(identifiers))), count) / count if count else 1.0


def unique_to_prompt(answers: Sequence[Answer]) -> list[float]:
  codes = [code_of(answer) for answer in answers]
  prompts: dict[str | None, set[str]] = {}
  for code, answer in zip(codes, answers, strict=True):
    prompts.setdefault(code, set()).add(answer.prompt.text)
  return [float(code is not None and len(prompts[code]) == 1) for code in codes]


# ---------------------------------------------------------------------------------------------- code
@functools.lru_cache(maxsize=4_096)  # a prompt has several answers
def function_of(prompt: str) -> ast.FunctionDef | ast.AsyncFunctionDef:
  """The function that a prompt begins. Raises ValueError where it does not."""
  try:
    [function] = parsed(prompt).body
  except (SyntaxError, ValueError):
    function = None
  if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
    raise ValueError(f'the prompt {prompt[:60]!r} is not the beginning of one function of Python')
  return function


def reference(answer: Answer, column: str) -> str:
  """The code of the row's own answer."""
  code = standard_library.code_in(str(answer.prompt.columns.get(column, '')))
  if code is None or not standard_library.parses(code):
    raise ValueError(f'the row of the prompt {answer.prompt.text[:60]!r} has no block of Python under {column!r}')
  return textwrap.dedent(code)


def arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
  given = function.args
  every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
  return [argument.arg for argument in every if argument is not None]


def names(code: str) -> tuple[set[str], set[str]]:
  """(read, set) in some code."""
  read, written = set(), set()
  for node in ast.walk(parsed(code)):
    match node:
      case ast.Name(id=name, ctx=ast.Load()):
        read.add(name)
      case ast.Name(id=name):
        written.add(name)
      case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
        written.add(name)
      case ast.ExceptHandler(name=str(name)):
        written.add(name)
      case ast.arg(arg=name):
        written.add(name)
      case ast.alias(name=name, asname=other):
        written.add(other or name.partition('.')[0])
  return read, written


def words(text: str) -> set[str]:
  """Of names and sentences, in small letters: 'read_HTTPHeader lines' has read, http, header and lines."""
  found = re.findall(r'[A-Z]+(?![a-z])|[A-Z]?[a-z]+', text)
  return {word.lower() for word in found if len(word) >= LEAST_LETTERS} - COMMON_WORDS


def parsed(code: str) -> ast.Module:
  with warnings.catch_warnings(action='ignore'):
    return ast.parse(textwrap.dedent(code))
