"""What the runs of a file of tests read, written anew for each file."""
import pytest

from tests.train import runs


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  """A file of text."""
  return runs.write_corpus(tmp_path_factory.mktemp('corpus'))


@pytest.fixture(scope='module')
def recipe_corpus(tmp_path_factory):
  """A file of text; conversations and pairs of answers lie beside it."""
  return runs.write_recipe(tmp_path_factory.mktemp('recipe'))
