"""The pages "Add ..." of docs/how-to/ list the files of what they add: those exist, and are all that the example is in.

A page lists its library files in a block that opens with ```files, and tests and documents in one with ```more. To test
a new page add a line to EXAMPLES.
"""
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / 'docs' / 'how-to'
PAGES = sorted(FOLDER.glob('add-*.md'))
LIBRARY = ('llm_jax', 'launch')

# Page -> what the files of its example mention, and no other file of the library does (a regular expression).
EXAMPLES = {
  'add-a-family': r'(?i)gemma2',
  'add-a-layer-option': r'\bqk_norm\b',
  'add-a-mesh-axis': r"'expert'|\bexpert: \w+ = 1\b|the expert axis|tensor, context, expert",
  'add-a-source': r'\bRatedAnswers',
  'add-an-evaluation': r'\bMultipleChoice',
  'add-an-objective': r'\bKTO|\bRATED\b|\bRated',
}


def listed(page: pathlib.Path, kind: str) -> list[str]:
  """The paths in the page's blocks of a kind, one a line; what follows a path says what is done there."""
  paths = []
  for block in re.findall(rf'^```{kind}\n(.*?)^```', page.read_text(encoding='utf-8'), re.DOTALL | re.MULTILINE):
    paths += [line.split()[0] for line in block.splitlines() if line.strip()]
  return paths


def mentioned_in(pattern: str) -> list[str]:
  """The files of the library with the pattern in them."""
  files = [file for folder in LIBRARY for file in (ROOT / folder).rglob('*.py')]
  found = [file for file in files if re.search(pattern, file.read_text(encoding='utf-8'))]
  return sorted(file.relative_to(ROOT).as_posix() for file in found)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_every_file_of_a_page_exists(page):
  files = listed(page, 'files')
  assert files, f'{page.name} lists no files: write them into a block that opens with ```files'
  for path in files + listed(page, 'more'):
    assert (ROOT / path).exists(), f'{page.name}: {path}'


# Page -> folders of what uses the example's option.
USERS = {'add-a-layer-option': ('llm_jax/config/presets/', 'llm_jax/hf/families/')}


@pytest.mark.parametrize('name', EXAMPLES)
def test_the_files_of_a_page_are_those_of_its_example(name):
  page = FOLDER / f'{name}.md'
  users = USERS.get(name, ())
  mentioned = [path for path in mentioned_in(EXAMPLES[name]) if not path.startswith(users)]
  assert sorted(listed(page, 'files')) == mentioned, f'{page.name} and its example have parted'


def test_every_page_has_an_example():
  assert sorted(EXAMPLES) == [page.stem for page in PAGES]


def test_what_is_listed(tmp_path):
  page = tmp_path / 'page.md'
  page.write_text('```files\na.py   the field\nb/c.py\n```\nwords\n```more\nd.md\n```\n', encoding='utf-8')
  assert listed(page, 'files') == ['a.py', 'b/c.py'] and listed(page, 'more') == ['d.md']
