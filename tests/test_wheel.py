"""The wheel, installed where there is no clone: its programs run from any folder."""
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig

import pytest

from tests.train import runs, tiny_experiment

ROOT = pathlib.Path(__file__).parent.parent
FILES = 'pyproject.toml', 'setup.py', 'README.md', 'LICENSE'
PACKAGES = 'llm_jax', 'launch', 'experiments'


def call(*command: str | pathlib.Path, cwd: pathlib.Path, **environment: str) -> subprocess.CompletedProcess:
  inherited = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
  return subprocess.run(command, cwd=cwd, env=inherited | environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> pathlib.Path:
  """Built from a copy of the tree, which the build would else write into."""
  tree = tmp_path_factory.mktemp('tree')
  for name in FILES:
    shutil.copy(ROOT / name, tree)
  for name in PACKAGES:
    shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns('__pycache__'))
  built = call(sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '--wheel-dir', 'dist', '.',
               cwd=tree)
  assert built.returncode == 0, built.stderr
  [path] = (tree / 'dist').glob('*.whl')
  return path


@pytest.fixture(scope='module')
def programs(wheel, tmp_path_factory) -> pathlib.Path:
  """The folder of the programs, in an environment that holds the wheel and, read from this one, what it needs."""
  environment = tmp_path_factory.mktemp('environment')
  made = call(sys.executable, '-m', 'venv', '--without-pip', environment, cwd=environment)
  assert made.returncode == 0, made.stderr
  python = environment / 'bin' / 'python'
  installed = call(sys.executable, '-m', 'pip', '--python', python, 'install', '--no-deps', '--no-index', wheel,
                   cwd=environment)
  assert installed.returncode == 0, installed.stderr
  # A path in a .pth file adds the packages of this environment, and not the clone that is installed in it as editable.
  [site_packages] = environment.glob('lib/python*/site-packages')
  (site_packages / 'needed.pth').write_text(sysconfig.get_path('purelib') + '\n')
  return python.parent


def test_modules_come_from_the_wheel(programs, tmp_path):
  where = call(programs / 'python', '-c', 'import llm_jax, launch.train; print(llm_jax.__file__, launch.__path__[0])',
               cwd=tmp_path)
  assert where.returncode == 0, where.stderr
  assert all(pathlib.Path(path).is_relative_to(programs.parent) for path in where.stdout.split())


@pytest.mark.parametrize('name', ['train', 'sample', 'convert', 'report'])
def test_every_program_prints_its_help(programs, name, tmp_path):
  helped = call(programs / f'llm-jax-{name}', '--help', cwd=tmp_path)
  assert helped.returncode == 0 and f'launch.{name}' in helped.stdout, helped.stderr


def test_wrong_input_ends_with_code_2(programs, tmp_path):
  refused = call(programs / 'llm-jax-train', '--config=missing.py', '--workdir=run', cwd=tmp_path)
  assert refused.returncode == 2 and refused.stderr.startswith('error: --config=missing.py: no such file')
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_a_run_outside_the_clone(programs, tmp_path):
  """An experiment of one's own, trained, sampled from and reported."""
  shutil.copy(tiny_experiment.__file__, tmp_path / 'mine.py')
  corpus = runs.write_corpus(tmp_path)
  settings = {'LLM_JAX_CACHE': str(tmp_path / 'cache'), 'XLA_FLAGS': ''}
  config = f'--config=mine.py:{corpus.name}'
  trained = call(programs / 'llm-jax-train', config, '--workdir=run', cwd=tmp_path, **settings)
  assert trained.returncode == 0, trained.stderr
  written = call(programs / 'llm-jax-sample', '--checkpoint=run', '--prompt=def ', '--max_new_tokens=4', cwd=tmp_path,
                 **settings)
  assert written.returncode == 0 and written.stdout.startswith('def '), written.stderr
  (tmp_path / 'run' / 'report.html').unlink()
  reported = call(programs / 'llm-jax-report', '--workdir=run', cwd=tmp_path, **settings)
  assert reported.returncode == 0 and (tmp_path / 'run' / 'report.html').exists(), reported.stderr
