"""Public names are the field's words: what replaced the worst of the old ones must not come back."""
import ast
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent

# A word of a name, and what to call the thing.
FORBIDDEN = {
  'asked': 'the thing that is asked for, such as `wanted`',
  'begun': '`started`, or a noun',
  'door': '`schema`',
  'facts': '`metadata`, of a checkpoint',
  'floor': '`layer`, of imports; `minimum`, of a number',
  'marks': '`special_tokens`',
  'mend': '`hint`',
  'told': 'a noun: the text or the value that is passed on',
}
# Whole names of config fields.
FORBIDDEN_FIELDS = {
  'context': '`seq_len`, unless it is the mesh axis',
  'control': '`special_tokens`',
  'control_ids': '`special_ids`',
  'held_out': '`val_fraction`, `eval_data` or `validation`',
}
# (file, name): why it stays.
ALLOWED = {
  ('llm_jax/config/run.py', 'Mesh.context'): 'the mesh axis',
  ('llm_jax/data/packing/needles.py', 'Facts'): 'facts as people know them, planted in a text and asked for',
  ('llm_jax/data/packing/needles.py', 'Facts.plant.facts'): 'the same',
}


class Name(NamedTuple):
  """A name that the code gives. `kind`: 'field' of a class, 'function', 'class' or 'parameter'."""
  kind: str
  qualified: str
  line: int

  @property
  def words(self) -> list[str]:
    """`KVCache.fromTokens_of` ends in ['from', 'tokens', 'of']."""
    last = self.qualified.rpartition('.')[2]
    return re.findall(r'[a-z0-9]+', re.sub(r'([a-z0-9])([A-Z])', r'\1_\2', last).lower())


def names(source: str) -> Iterator[Name]:
  """The public names of a file: of classes, their fields, functions and parameters, wherever they stand."""
  yield from names_in(ast.parse(source), '')


def names_in(node: ast.AST, prefix: str) -> Iterator[Name]:
  for child in ast.iter_child_nodes(node):
    inner = prefix
    if isinstance(child, ast.ClassDef):
      inner = f'{prefix}{child.name}.'
      yield Name('class', f'{prefix}{child.name}', child.lineno)
      for statement in child.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
          yield Name('field', f'{inner}{statement.target.id}', statement.lineno)
    elif isinstance(child, ast.FunctionDef):
      inner = f'{prefix}{child.name}.'
      yield Name('function', f'{prefix}{child.name}', child.lineno)
      arguments = child.args
      for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        yield Name('parameter', f'{inner}{argument.arg}', argument.lineno)
    yield from names_in(child, inner)


def forbidden(path: str, source: str) -> list[str]:
  """What must be called something else, one line each."""
  found = []
  for name in names(source):
    if (path, name.qualified) in ALLOWED:
      continue
    hints = [FORBIDDEN[word] for word in name.words if word in FORBIDDEN]
    last = name.qualified.rpartition('.')[2]
    if name.kind == 'field' and path.startswith('llm_jax/config/') and last in FORBIDDEN_FIELDS:
      hints.append(FORBIDDEN_FIELDS[last])
    found += [f'{path}:{name.line}: {name.kind} {name.qualified}: use {hint}' for hint in hints]
  return found


def files() -> list[pathlib.Path]:
  return [file for folder in ('llm_jax', 'launch') for file in sorted((ROOT / folder).rglob('*.py'))]


def test_no_public_name_has_a_forbidden_word():
  found = []
  for file in files():
    found += forbidden(file.relative_to(ROOT).as_posix(), file.read_text(encoding='utf-8'))
  assert not found, '\n'.join(found)


def test_every_exception_is_still_needed():
  given = {(file.relative_to(ROOT).as_posix(), name.qualified)
           for file in files() for name in names(file.read_text(encoding='utf-8'))}
  assert set(ALLOWED) <= given


def test_a_forbidden_name_is_found():
  for source, words in (
    ('def check(value, mend): ...', 'x.py:1: parameter check.mend: use `hint`'),
    ('class Store:\n  def facts_of(self): ...', 'x.py:2: function Store.facts_of: use `metadata`'),
    ('class ControlMarks: ...', 'class ControlMarks: use `special_tokens`'),
    ('class Stage:\n  held_out: int = 0', 'x.py:2: field Stage.held_out: use `val_fraction`'),
    ('class Stage:\n  context: int', 'field Stage.context: use `seq_len`'),
    ('def outer():\n  def inner(asked): ...', 'parameter outer.inner.asked'),
  ):
    assert any(words in line for line in forbidden('llm_jax/config/x.py', source)), source


def test_a_good_name_is_not():
  for source in ('def test(text, hint): ...', 'def recommend(marked): ...', 'class Context:\n  seq_len: int'):
    assert forbidden('llm_jax/config/x.py', source) == []
