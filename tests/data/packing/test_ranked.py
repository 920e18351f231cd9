"""Ranked answers from their rows to batches: what is compared, what is cut or left out, what is refused."""
import logging

import numpy as np
import pytest

from llm_jax.batch import RankedBatch
from llm_jax.config import experiment as config
from llm_jax.config.errors import ConfigError
from llm_jax.data.batches import TrainSource, validation_batches
from llm_jax.data.tokenizers import byte_level, chat_templates
from tests.data.dialogue_files import open_data, preferences, train_tokenizer, write, write_files

ROWS = [
  {'prompt': 'one', 'answers': ['1', 'first', 'uno']},
  {'prompt': 'two', 'answers': ['2', [{'role': 'assistant', 'content': 'second'}]], 'ranks': [2, 1]},
  {'prompt': [{'role': 'user', 'content': 'three'}], 'answers': ['3', 'third', 'tre', 'drei'], 'ranks': [1, 2, 2, 4]},
]


@pytest.fixture(scope='module')
def bpe():
  return train_tokenizer()


def ranked(folder, rows=ROWS, **options):
  return config.RankedAnswers(write(folder / 'ranked.jsonl', rows), **{'val_fraction': 0.0, **options})


@pytest.mark.parametrize('template', ['chatml', 'plain'])
def test_rows_are_prompts(template, bpe, tmp_path):
  data = open_data(tmp_path, bpe, ranked(tmp_path, template=template), seq_len=80)
  assert data.rows_per_epoch == 3 and data.num_documents == 9
  said = {'one': ['1', 'first', 'uno'], 'two': ['2', 'second'], 'three': ['3', 'third', 'tre', 'drei']}
  for row, (question, answers) in zip(data.rows, said.items(), strict=True):
    for side, answer in zip(row['answers'], answers, strict=False):
      messages = [{'role': 'user', 'content': question}, {'role': 'assistant', 'content': answer}]
      ids, _ = chat_templates.render(messages, template, bpe)
      n = len(ids) - 1
      assert np.array_equal(side['tokens'][:n], ids[:-1]) and np.array_equal(side['targets'][:n], ids[1:])
      assert side['segment_ids'].sum() == n
    assert all(not side['segment_ids'].any() for side in row['answers'][len(answers):])
  assert [list(map(int, row['ranks'])) for row in data.rows] == [[1, 2, 3, 0], [2, 1, 0, 0], [1, 2, 2, 4]]


def test_batches(bpe, tmp_path):
  data = open_data(tmp_path, bpe, ranked(tmp_path), seq_len=80)
  source = TrainSource(data, 2)
  batch = source.next()
  source.close()
  assert isinstance(batch, RankedBatch) and len(batch.answers) == 4
  assert batch.answers[0].tokens.shape == (2, 80) and batch.ranks[3].shape == (2,)
  held_out = open_data(tmp_path, bpe, ranked(tmp_path, val_fraction=0.999), split='validation', seq_len=80)
  [padded] = validation_batches(held_out, 4)
  assert np.stack(padded.ranks).sum(0)[held_out.rows_per_epoch:].tolist() == [0] * (4 - held_out.rows_per_epoch)


def test_what_is_equal_within_the_row_is_not_compared(caplog, tmp_path):
  rows = [{'prompt': 'a', 'answers': ['b' * 60 + 'c', 'b' * 60 + 'd']},      # left out
          {'prompt': 'a', 'answers': ['b' * 60 + 'c', 'x', 'b' * 60 + 'd']},  # the last is left out of it
          {'prompt': 'a' * 100, 'answers': ['b', 'c']},                       # left out
          {'prompt': 'a', 'answers': ['b', 'c']}]
  with caplog.at_level(logging.WARNING):
    data = open_data(tmp_path, byte_level.ByteTokenizer(), ranked(tmp_path, rows, template='plain'), seq_len=40)
  assert [record.getMessage() for record in caplog.records] == [
    'data.sources[0] (train): 1 of 4 rows left out, their prompt fills seq_len=40',
    'data.sources[0] (train): 1 of 4 rows left out, their answers are equal within seq_len=40',
    'data.sources[0] (train): 1 of 2 rows have an answer longer than seq_len=40, which is cut']
  assert [list(map(int, row['ranks'])) for row in data.rows] == [[1, 2, 0, 0], [1, 2, 0, 0]]
  assert data.num_targets == sum(int(side['weights'].sum()) for row in data.rows for side in row['answers'])


@pytest.mark.parametrize('row, message', [
  ({'answers': ['a']}, 'answers are no list of two or more'),
  ({'answers': list('abcde')}, 'it has 5 answers: the source has room for answers=4'),
  ({'answers': ['a', 'b'], 'ranks': [1]}, r'ranks are \[1\]: give each of the 2 answers'),
  ({'answers': ['a', 'b'], 'ranks': [0, 1]}, r'ranks are \[0, 1\]'),
  ({'answers': ['a', 'b'], 'ranks': [1, True]}, r'ranks are \[1, True\]'),
  ({'answers': ['a', 'b'], 'ranks': [2, 2]}, 'all answers have one rank'),
  ({'answers': ['a', 3]}, r'answers\[1\] is a int'),
  ({'answers': ['a', 'b'], 'score': 1}, 'score is not read'),
])
def test_rows_that_are_refused(row, message, tmp_path):
  source = ranked(tmp_path, [{'prompt': 'p', **row}], template='plain')
  with pytest.raises(ConfigError, match=rf'ranked.jsonl:1.*{message}'):
    open_data(tmp_path, byte_level.ByteTokenizer(), source)


def test_what_learns_from_them(tmp_path):
  fields = dict(steps=1, seq_len=80, batch_size=2, learning_rate=config.Constant(1e-3))
  stage = config.stage('reward', ranked(tmp_path), objective=config.RewardModel(), microbatches=2, **fields)
  assert stage.phases[0].tokens == 2 * 4 * 80
  with pytest.raises(ConfigError, match='data has ranked answers: use RewardModel, or data of'):
    config.stage('dpo', ranked(tmp_path), objective=config.DPO(), **fields)
  with pytest.raises(ConfigError, match='cannot be mixed'):
    config.mix(ranked(tmp_path), preferences(write_files(tmp_path)))
  with pytest.raises(ConfigError, match='as many a prompt'):
    config.mix(ranked(tmp_path), ranked(tmp_path, answers=5))
