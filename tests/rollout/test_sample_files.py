"""Samples on disk, and the rows that sources of files read of them."""
import numpy as np
import pytest

from llm_jax.config.data import Data, Weighted
from llm_jax.config.errors import ConfigError
from llm_jax.config.experiment import BestOf, Conversations, Exact, Preferences, RankedPairs, Samples, SortedDigits
from llm_jax.data.dataset import open_dataset
from llm_jax.data.prompts import Prompt
from llm_jax.data.tokenizers.byte_level import ByteTokenizer
from llm_jax.rollout.sample_files import SampleFiles
from llm_jax.rollout.sampling import Answer
from llm_jax.runtime.errors import FileError

SAMPLES = Samples('texts', SortedDigits(), (Exact(),), answers=2)
END = ByteTokenizer().eot
QUESTION = '2\u2028+2=é'  # with a line break that JSON does not know


def write(files, *texts, end=True):
  """Two answers to one prompt, of which the second is better."""
  files.begin('model')
  prompt = Prompt(QUESTION, (1, 2), {'answer': 4}, QUESTION)
  answers = [Answer(prompt, (3, 4), text, end, (-1.0, -1.0)) for text in texts]
  files.write_part(0, answers, np.array([[0.0, 1.0]]), np.array([0.0, 0.5]), 2)
  files.finish(1)
  return files


@pytest.fixture
def files(tmp_path):
  return write(SampleFiles(tmp_path / 'samples', {'seed': 1}), 'no', 'yes')


def dataset(source, tmp_path):
  return open_dataset(Data((Weighted(source),)), ByteTokenizer(), seq_len=31, seed=0, split='train',
                      cache_dir=tmp_path / 'cache')


def test_the_best_is_a_conversation(files, tmp_path):
  """Without a template the ids are those of the prompt that was answered, of the answer, and the end of text."""
  path = files.write_rows(BestOf(SAMPLES))
  found = dataset(Conversations(str(path), None, val_fraction=0.0), tmp_path)
  [ids] = found.token_documents()
  begin = ByteTokenizer().begin
  assert ids.tolist() == [*begin, *QUESTION.encode(), *b'yes', END]
  row = found.row(0)
  targets = row['targets'][row['weights'] > 0]
  assert targets.tolist() == [*b'yes', END]


def test_pairs_are_preferences(files, tmp_path):
  path = files.write_rows(RankedPairs(SAMPLES))
  row = dataset(Preferences(str(path), None, mask_formatting=False, val_fraction=0.0), tmp_path).row(0)
  for side, text in (('chosen', b'yes'), ('rejected', b'no')):
    assert row[side]['targets'][row[side]['weights'] > 0].tolist() == [*text, END]


def test_samples_of_other_settings_are_not_these(files):
  assert files.manifest['model'] == 'model'
  assert SampleFiles(files.folder, {'seed': 2}).manifest is None


def test_damaged_samples_are_named(files):
  path = files.folder / 'answers.jsonl'
  path.write_bytes(path.read_bytes().replace(b'yes', b'not'))
  with pytest.raises(FileError, match='answers.jsonl: is not as it was written'):
    files.write_rows(BestOf(SAMPLES))


@pytest.mark.parametrize('source, message', [
  (BestOf(SAMPLES, at_least=0.6), 'none has at_least=0.6'),
  (RankedPairs(SAMPLES, least_gap=0.6), 'no two of a prompt differ'),
])
def test_nothing_is_chosen(source, message, files):
  with pytest.raises(ConfigError, match=message):
    files.write_rows(source)
