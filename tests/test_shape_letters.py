"""Files that name the axes of arrays by letters (x_BTD) have their legend; a letter means the same in all files."""
import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'llm_jax'
MASTER = PACKAGE / '__init__.py'
SUFFIX = re.compile(r'[a-z]\w*_(?=[0-9]*[A-Z])([A-Z0-9]+)')


def letters_of(source: str) -> set[str]:
  """The letters that end names (x_BTD), and the single capital letters that functions assign (B, T, D = x.shape)."""
  found = set()
  tree = ast.parse(source)
  for node in ast.walk(tree):
    for name in names_in(node):
      suffix = SUFFIX.fullmatch(name.lstrip('_'))
      if suffix:
        found |= set(re.sub('[0-9]', '', suffix[1]))
    if isinstance(node, ast.FunctionDef):
      found |= {inner.id for inner in ast.walk(node) if is_single_letter(inner)}
  return found


def names_in(node: ast.AST) -> list[str]:
  match node:
    case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name) | ast.FunctionDef(name=name):
      return [name]
    case ast.keyword(arg=str(name)):
      return [name]
  return []


def is_single_letter(node: ast.AST) -> bool:
  return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and bool(re.fullmatch('[A-Z]', node.id))


def legend_of(source: str) -> dict[str, str]:
  """The meanings of the letters after 'Shapes:' in a file's docstring."""
  docstring = ast.get_docstring(ast.parse(source)) or ''
  stated = re.search(r'^Shapes: (.*?)\.$', docstring, re.DOTALL | re.MULTILINE)
  if stated is None:
    return {}
  entries = [' '.join(entry.split()) for entry in stated[1].split(',')]
  return {entry[0]: entry[2:] for entry in entries}


def complaints(source: str, path: str, master: dict[str, str]) -> list[str]:
  """What is wrong with the legend of a file, one readable line each."""
  used, legend = letters_of(source), legend_of(source)
  found = []
  if used - legend.keys():
    entries = ', '.join(f'{letter} {master.get(letter, "...")}' for letter in sorted(used - legend.keys()))
    found.append(f'{path}: add to the end of its docstring: Shapes: {entries}.')
  for letter in sorted(legend.keys() - used):
    found.append(f'{path}: its legend has {letter}, which no name uses')
  for letter, meaning in legend.items():
    if master.get(letter) != meaning:
      found.append(f'{path}: {letter} is {meaning!r} here, and {master.get(letter)!r} in {MASTER.relative_to(ROOT)}')
  return found


def test_every_file_has_the_legend_of_its_letters():
  master = legend_of(MASTER.read_text(encoding='utf-8'))
  found = []
  for file in sorted(PACKAGE.rglob('*.py')):
    if file != MASTER:
      found += complaints(file.read_text(encoding='utf-8'), file.relative_to(ROOT).as_posix(), master)
  assert not found, '\n'.join(found)


def test_every_letter_of_the_master_legend_is_used():
  sources = [file.read_text(encoding='utf-8') for file in PACKAGE.rglob('*.py')]
  assert set().union(*map(letters_of, sources)) == set(legend_of(MASTER.read_text(encoding='utf-8')))


@pytest.mark.parametrize('source, complaint', [
  ('x_BT = 1', 'add to the end of its docstring: Shapes: B batch, T time.'),
  ('"""Words.\n\nShapes: B batch.\n"""\ndef f(x_BT): pass', 'Shapes: T time.'),
  ('"""Words.\n\nShapes: B batch,\n  T time.\n"""\nx_B = 1', 'its legend has T, which no name uses'),
  ('"""Words.\n\nShapes: B bytes.\n"""\nx_B = 1', "B is 'bytes' here, and 'batch' in llm_jax/__init__.py"),
  ('def f(x):\n  B, size = x.shape', 'Shapes: B batch.'),
  ('f(x_B1=2)', 'Shapes: B batch.'),
])
def test_what_is_complained_about(source, complaint):
  [line] = complaints(source, 'file.py', {'B': 'batch', 'T': 'time'})
  assert complaint in line


def test_what_is_no_shape_letter():
  assert letters_of('MOST_SCORES = 1\nT = TypeVar("T")\nmax_length = 2\nscore_factor_1 = 3\nHTTP_port = 4') == set()
