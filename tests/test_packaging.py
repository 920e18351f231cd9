"""What `setup.py` asks for, what `constraints.txt` pins and what the code imports agree."""
import ast
import importlib.metadata
import os
import pathlib
import re
import runpy
import sys
import types

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def setup_arguments(monkeypatch):
  """The keyword arguments that `setup.py` gives to `setuptools.setup`."""
  got = {}
  stub = types.SimpleNamespace(setup=lambda **arguments: got.update(arguments), find_packages=lambda **_: [])
  monkeypatch.setitem(sys.modules, 'setuptools', stub)
  runpy.run_path(str(ROOT / 'setup.py'))
  return got


def canonical(requirement: str) -> str:
  """`jax[cuda13]>=1` -> `jax`, spelt as registries compare names."""
  return re.sub(r'[-_.]+', '-', re.match(r'[\w.-]+', requirement)[0]).lower()


def pins() -> dict[str, str]:
  lines = [line for line in (ROOT / 'constraints.txt').read_text().splitlines() if not line.startswith('#')]
  assert all(re.fullmatch(r'[\w.-]+==[\w.]+', line) for line in lines)  # exact, no local build, no address
  return {canonical(line): line.split('==')[1] for line in lines}


def test_all_that_is_tested_is_pinned(setup_arguments):
  wanted = setup_arguments['install_requires'] + setup_arguments['extras_require']['test']
  assert not {canonical(requirement) for requirement in wanted} - set(pins())
  assert f'torch=={pins()["torch"]}' in setup_arguments['extras_require']['test']
  assert f'torch=={pins()["torch"]}' in (ROOT / 'Makefile').read_text()


def third_party(tree: ast.AST) -> set[str]:
  """Top-level names of the imported packages that are neither Python's nor ours."""
  names = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names |= {alias.name.split('.')[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
      names.add(node.module.split('.')[0])
  return names - set(sys.stdlib_module_names) - {'llm_jax', 'launch', 'experiments'}


def test_what_the_code_imports_is_declared(setup_arguments):
  core = {canonical(requirement) for requirement in setup_arguments['install_requires']}
  extras = {canonical(each) for group in setup_arguments['extras_require'].values() for each in group}
  distributions = importlib.metadata.packages_distributions()
  undeclared = []
  for file in sorted([*(ROOT / 'llm_jax').rglob('*.py'), *(ROOT / 'launch').rglob('*.py')]):
    tree = ast.parse(file.read_text(encoding='utf-8'))
    at_once = third_party(ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], []))
    for name in third_party(tree):
      declared = core if name in at_once else core | extras
      if not {canonical(each) for each in distributions.get(name, [name])} & declared:
        undeclared.append(f'{file.relative_to(ROOT)}: imports {name}, which setup.py does not ask for')
  assert not undeclared, '\n'.join(undeclared)


def test_continuous_integration_runs_make_test():
  script = ROOT / '.ci' / 'run'
  assert os.access(script, os.X_OK) and 'make test' in script.read_text()
