"""Questions to learn from, behind the passages that are found for them."""
import json

import pytest

from llm_jax.config.errors import ConfigError
from llm_jax.config.sources import RetrievedAnswers
from llm_jax.data.sources.documents import open_source
from llm_jax.retrieve.index import Index, save
from llm_jax.retrieve.passages import Passage

FACTS = ('Aldor has the code 17.', 'Bemin has the code 25.', 'Cask has the code 38.')


@pytest.fixture
def files(tmp_path):
  save(tmp_path / 'index', Index(tuple(Passage('a', i, text) for i, text in enumerate(FACTS)), 'texts'))
  rows = [{'question': 'What is the code of Bemin?', 'answer': '25'}, {'question': 'And of Cask?', 'answer': '38'}]
  (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return tmp_path


def source(files, **changes):
  return RetrievedAnswers(**(dict(path=str(files / 'rows.jsonl'), index=str(files / 'index'), template='plain',
                                  val_fraction=0.0) | changes))


def test_the_passages_stand_in_the_prompt(files):
  documents = [document for _, document in open_source(source(files)).documents('train')]
  assert [document.messages[0]['content'] for document in documents] == [
    f'{FACTS[1]}\n\nWhat is the code of Bemin?', f'{FACTS[2]}\n\nAnd of Cask?']
  assert [document.answers for document in documents] == [['25'], ['38']]
  [first, _] = [document for _, document in open_source(source(files, count=2)).documents('train')]
  assert first.messages[0]['content'].split('\n\n')[1:] == [FACTS[1], 'What is the code of Bemin?']


def test_other_passages_are_other_data(files):
  before = open_source(source(files)).fingerprint
  (files / 'index').rename(files / 'moved')
  assert open_source(source(files, index=str(files / 'moved'))).fingerprint == before
  save(files / 'moved', Index((Passage('a', 0, FACTS[1]),), 'texts'))
  assert open_source(source(files, index=str(files / 'moved'))).fingerprint != before


def test_what_is_no_row_is_named(files):
  (files / 'rows.jsonl').write_text('{"question": "a", "answer": 3}\n')
  with pytest.raises(ConfigError, match='rows.jsonl:1.*answer is a int.*give a text'):
    list(open_source(source(files)).documents('train'))
  with pytest.raises(ConfigError, match='build it first'):
    open_source(source(files, index=str(files / 'nowhere')))
  with pytest.raises(ConfigError, match='count = 0'):
    source(files, count=0)
