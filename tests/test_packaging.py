"""What `pyproject.toml` asks for, what `constraints.txt` pins and what the code imports agree."""
import ast
import importlib.metadata
import os
import pathlib
import re
import sys
import tomllib

import pytest
import yaml

import llm_jax
from launch import arena, convert, evaluate, explain, plan, prepare, report, retrieve, sample, train
from llm_jax.config.version import __version__

ROOT = pathlib.Path(__file__).parent.parent
WORKFLOW = yaml.safe_load((ROOT / '.github' / 'workflows' / 'ci.yml').read_text(encoding='utf-8'))
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']
OURS = {'llm_jax', 'launch', 'experiments'}


def canonical(requirement: str) -> str:
  """`jax[cuda13]>=1` -> `jax`, spelt as registries compare names."""
  return re.sub(r'[-_.]+', '-', re.match(r'[\w.-]+', requirement)[0]).lower()


def pins() -> dict[str, str]:
  lines = [line for line in (ROOT / 'constraints.txt').read_text().splitlines() if not line.startswith('#')]
  assert all(re.fullmatch(r'[\w.-]+==[\w.]+', line) for line in lines)  # exact, no local build, no address
  return {canonical(line): line.split('==')[1] for line in lines}


def extra(name: str) -> list[str]:
  """The requirements of an extra, those of the extras that it names included."""
  wanted = []
  for requirement in PROJECT['optional-dependencies'][name]:
    if named := re.fullmatch(r'llm_jax\[([\w,]+)\]', requirement):
      for other in named[1].split(','):
        wanted += extra(other)
    else:
      wanted.append(requirement)
  return wanted


def makefile() -> str:
  return (ROOT / 'Makefile').read_text(encoding='utf-8')


def targets() -> set[str]:
  return set(re.findall(r'^([\w-]+):', makefile(), re.MULTILINE))


@pytest.mark.parametrize('name', ['test', 'lint', 'docs'])
def test_what_continuous_integration_installs_is_pinned(name):
  wanted = PROJECT['dependencies'] + extra(name)
  assert not {canonical(requirement) for requirement in wanted} - set(pins())


def test_torch_has_one_version():
  wanted = f'torch=={pins()["torch"]}'
  assert wanted in extra('test') and wanted in makefile()


def third_party(tree: ast.AST) -> set[str]:
  """Top-level names of the imported packages that are neither Python's nor ours."""
  names = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names |= {alias.name.split('.')[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
      names.add(node.module.split('.')[0])
  return names - set(sys.stdlib_module_names) - OURS


def test_what_the_code_imports_is_declared():
  core = {canonical(requirement) for requirement in PROJECT['dependencies']}
  extras = {canonical(each) for name in PROJECT['optional-dependencies'] for each in extra(name)}
  distributions = importlib.metadata.packages_distributions()
  undeclared = []
  for file in sorted([*(ROOT / 'llm_jax').rglob('*.py'), *(ROOT / 'launch').rglob('*.py')]):
    tree = ast.parse(file.read_text(encoding='utf-8'))
    at_once = third_party(ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], []))
    for name in third_party(tree):
      # Nothing imports those files that does not need what they need.
      is_optional = name not in at_once or not {'harness', 'prompting'}.isdisjoint(file.parts)
      declared = core | extras if is_optional else core
      if not {canonical(each) for each in distributions.get(name, [name])} & declared:
        undeclared.append(f'{file.relative_to(ROOT)}: imports {name}, which pyproject.toml does not ask for')
  assert not undeclared, '\n'.join(undeclared)


def test_continuous_integration_runs_what_make_offers():
  script = ROOT / '.ci' / 'run'
  assert os.access(script, os.X_OK)
  called = re.findall(r'^(?:exec )?make ([\w-]+)$', script.read_text(encoding='utf-8'), re.MULTILINE)
  assert {'lint', 'test'} <= set(called) <= targets()


def test_the_workflow_and_the_hooks_run_what_make_offers():
  assert {'lint', 'types', 'tests', 'docs', 'wheel'} == set(WORKFLOW['jobs'])
  steps = [step for job in WORKFLOW['jobs'].values() for step in job['steps']]
  called = {match[1] for step in steps if (match := re.match(r'make ([\w-]+)', step.get('run', '')))}
  assert {'lint', 'lint-types', 'test', 'docs', 'wheel'} <= called <= targets()
  hooks = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text(encoding='utf-8'))['repos'][0]['hooks']
  assert {hook['entry'].removeprefix('make ') for hook in hooks} <= targets()


def test_the_workflow_tests_every_python_and_the_lowest_and_the_newest_jax():
  legs = WORKFLOW['jobs']['tests']['strategy']['matrix']['include']
  pythons = {match[1] for each in PROJECT['classifiers'] if (match := re.fullmatch(r'.* :: Python :: (3\.\d+)', each))}
  assert {leg['python'] for leg in legs} == pythons
  lowest, newest = legs[0], legs[-1]
  assert (lowest['jax'], lowest['flax']) == (pins()['jax'], pins()['flax'])
  [wanted] = [requirement for requirement in PROJECT['dependencies'] if canonical(requirement) == 'jax']
  least, below = re.fullmatch(r'jax>=([\d.]+),<0\.(\d+)', wanted).groups()
  assert lowest['jax'] == least and newest['jax'].split('.')[:2] == ['0', str(int(below) - 1)]


def test_one_version_everywhere():
  version = PROJECT['version']
  assert yaml.safe_load((ROOT / 'CITATION.cff').read_text(encoding='utf-8'))['version'] == version
  releases = re.findall(r'^## (\S+)', (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8'), re.MULTILINE)
  assert releases[0] == version


def test_every_command_is_a_program():
  modules = {'train': train, 'sample': sample, 'convert': convert, 'evaluate': evaluate, 'explain': explain,
             'arena': arena, 'retrieve': retrieve, 'report': report, 'plan': plan, 'prepare': prepare}
  assert PROJECT['scripts'] == {f'llm-jax-{name}': f'launch.{name}:cli' for name in modules}
  assert all(callable(module.cli) for module in modules.values())


def test_the_package_knows_its_version():
  assert PROJECT['version'] == __version__ == llm_jax.__version__
