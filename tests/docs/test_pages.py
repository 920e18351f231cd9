"""The pages under docs/ say what the code is: links, names, commands, experiments, pictures and tables."""
import ast
import contextlib
import importlib
import io
import pathlib
import re
import shlex

import pytest

from docs import tables
from docs.pictures import make
from launch import arena, convert, evaluate, explain, plan, report, retrieve, sample, train
from launch.experiment_file import load_run
from launch.overrides import split_overrides
from llm_jax.config import experiment, presets
from llm_jax.config.run import Run

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / 'docs'
PAGES = sorted([*DOCS.rglob('*.md'), ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', ROOT / 'benchmarks' / 'README.md'])
EXPERIMENTS = sorted(path.name for path in (ROOT / 'experiments').glob('*.py') if path.name != '__init__.py')
NEEDS_A_MODEL = 'experiments/finetune.py'  # it reads the folder that it is given


def name_of(path: pathlib.Path) -> str:
  return path.relative_to(ROOT).as_posix()


def text_of(page: pathlib.Path) -> str:
  return page.read_text(encoding='utf-8')


def blocks(language: str) -> list:
  """Every fenced block of a language in all pages, as a test's parameter."""
  found = []
  for page in PAGES:
    for number, code in enumerate(re.findall(rf'^```{language}\n(.*?)^```', text_of(page), re.DOTALL | re.MULTILINE)):
      found.append(pytest.param(code, id=f'{name_of(page)}-{number}'))
  return found


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_links_lead_somewhere(page):
  for target in re.findall(r'\]\((?!https?:)([^)#]+)', text_of(page)):
    assert (page.parent / target).exists(), target
  for path in re.findall(r'^--8<-- "(.*)"$', text_of(page), re.MULTILINE):
    assert (ROOT / path).exists(), path


def test_every_page_is_in_the_navigation():
  listed = re.findall(r'^ +- (?:[^:\n]*: )?([\w/-]+\.md)$|^  - [^:\n]*: ([\w/-]+\.md)$',
                      text_of(ROOT / 'mkdocs.yml').partition('\nnav:')[2], re.MULTILINE)
  assert sorted(map(''.join, listed)) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob('*.md'))


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_what_is_named_exists(page):
  text = text_of(page)
  for name in re.findall(r'\bpresets\.(\w+)', text):
    assert hasattr(presets, name), name
  for path in re.findall(r'`((?:llm_jax|launch|experiments|tests|benchmarks|notebooks)/[\w/.]*)`', text):
    assert (ROOT / path).exists(), path
  for name in re.findall(r'^::: (\S+)', text, re.MULTILINE):
    assert public_object(name) is not None, name


def public_object(name: str):
  """The module, class or function of a dotted name; None where there is none."""
  with contextlib.suppress(ImportError):
    return importlib.import_module(name)
  module, _, attribute = name.rpartition('.')
  return getattr(importlib.import_module(module), attribute, None)


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_commands_that_train_are_right(page):
  """Those with an experiment that is here: it exists, and has the fields that are set."""
  for line in re.findall(r'(?:launch\.train|llm-jax-train|local\.sh \d) ([^`\n]*)', text_of(page)):
    overrides, rest = split_overrides(words_of(line))
    configs = [flag.partition('=')[2] for flag in rest if flag.startswith('--config=experiments/')]
    for config in configs:
      if config.startswith(NEEDS_A_MODEL):
        assert (ROOT / NEEDS_A_MODEL).exists()
      else:
        assert isinstance(load_run(f'{ROOT}/{config}', overrides), Run)


def words_of(line: str) -> list[str]:
  """A command's words. A quote that it stands in, such as a docstring's, ends it."""
  try:
    return shlex.split(line, comments=True)
  except ValueError:
    return shlex.split(line.rstrip('"\''), comments=True)


@pytest.mark.parametrize('code', blocks('python'))
def test_what_examples_import_exists(code):
  for node in ast.walk(ast.parse(code)):
    if isinstance(node, ast.ImportFrom) and node.module.split('.')[0] in ('llm_jax', 'experiments'):
      for alias in node.names:
        assert public_object(f'{node.module}.{alias.name}') is not None, f'{node.module}.{alias.name}'


@pytest.mark.parametrize('code', [block for block in blocks('python') if 'def get_config' in block.values[0]])
def test_examples_of_experiments_are_right(code, tmp_path, monkeypatch):
  monkeypatch.setattr('llm_jax.hf.read_config', lambda folder: presets.llama3_2_1b())
  monkeypatch.setattr(
    'llm_jax.hf.read_tokenizer', lambda folder: experiment.HuggingFaceFile(f'{folder}/tokenizer.json')
  )
  path = tmp_path / 'mine.py'
  path.write_text(code, encoding='utf-8')
  argument = ':FOLDER' if 'get_config(folder)' in code else ''
  assert isinstance(load_run(f'{path}{argument}'), Run)


PROGRAMS = [train, sample, convert, evaluate, explain, arena, retrieve, report, plan]


@pytest.mark.parametrize('module', PROGRAMS, ids=lambda module: module.__name__)
def test_every_flag_is_on_the_page_of_commands(module):
  name = module.__name__.partition('.')[2]
  printed = io.StringIO()
  with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
    module.main(['launch.train', '--help'] if module is train else ['--help'])
  flags = set(re.findall(r'^  (?:-h, )?(--\w+)', printed.getvalue(), re.MULTILINE)) - {'--help'}
  section = re.search(rf'^## {name}\n(.*?)(?=^## )', text_of(DOCS / 'commands.md'), re.DOTALL | re.MULTILINE)[1]
  table = ' '.join(line.split('|')[1] for line in section.splitlines() if line.startswith('|'))
  assert set(re.findall(r'`(--\w+)`', table)) - {'--help'} == flags


def test_every_experiment_is_a_recipe():
  table = text_of(DOCS / 'recipes.md').partition('\n## ')[0]
  assert sorted(set(re.findall(r'`(\w+\.py)', table))) == EXPERIMENTS


def test_a_term_is_explained_once():
  terms = re.findall(r'^\*\*(.+)\*\*\n: ', text_of(DOCS / 'glossary.md'), re.MULTILINE)
  words = [word for term in terms for word in term.split(', ')]
  assert len(words) > 40 and len(set(words)) == len(words)


@pytest.mark.parametrize('name', make.PICTURES)
def test_pictures_are_those_of_the_code(name):
  """Otherwise: python -m docs.pictures.make"""
  assert (make.FOLDER / f'{name}.svg').read_text(encoding='utf-8') == make.PICTURES[name]()


def test_no_picture_is_left_over():
  assert {path.stem for path in make.FOLDER.glob('*.svg')} == set(make.PICTURES)
  shown = {name for page in PAGES for name in re.findall(r'pictures/(\w+)\.svg', text_of(page))}
  assert shown == set(make.PICTURES)


def test_tables_are_those_of_the_code():
  """Otherwise: python -m docs.tables"""
  for path in tables.TABLES:
    assert tables.filled(path) == text_of(path), path


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_asks_nothing_of_the_network(tmp_path, monkeypatch):
  commands = pytest.importorskip('mkdocs.commands.build')
  config = importlib.import_module('mkdocs.config')
  monkeypatch.setenv('NO_MKDOCS_2_WARNING', '1')
  commands.build(config.load_config(str(ROOT / 'mkdocs.yml'), strict=True, site_dir=str(tmp_path / 'site')))
  loads = re.compile(r'<(?:script|img|iframe|link)[^>]*(?:src|href)="?(?:https?:)?//[^>]*>')
  for page in (tmp_path / 'site').rglob('*.html'):
    assert not loads.findall(page.read_text(encoding='utf-8')), page
