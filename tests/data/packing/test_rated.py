"""Rated answers from their rows to batches."""
import pytest

from llm_jax.config.errors import ConfigError
from llm_jax.config.sources import RatedAnswers
from llm_jax.data.batches import validation_batches
from tests.data.dialogue_files import ANSWERS, QUESTIONS, open_data, train_tokenizer, write


@pytest.fixture(scope='module')
def bpe():
  return train_tokenizer()


def rated(tmp_path, rows, **options):
  return RatedAnswers(write(tmp_path / 'rated.jsonl', rows), **{'val_fraction': 0.0, **options})


ROWS = [{'prompt': QUESTIONS[i], 'completion': ANSWERS[i], 'label': i % 3 == 0} for i in range(12)]


def test_rows_have_the_answer_and_another_ones(tmp_path, bpe):
  data = open_data(tmp_path, bpe, rated(tmp_path, ROWS), seq_len=64)
  [rows] = data.parts.values()
  assert len(rows) == len(ROWS)
  for i, row in enumerate(ROWS):
    other = ROWS[(i + len(ROWS) // 2) % len(ROWS)]
    fields = rows[i]
    assert fields['is_desirable'] == row['label']
    for side, answer in (('answer', row['completion']), ('mismatched', other['completion'])):
      learnt = fields[side]['targets'][fields[side]['weights'] > 0]
      assert bpe.decode(learnt).removesuffix('<|im_end|>') == answer
      used = fields[side]['tokens'][fields[side]['segment_ids'] > 0]
      assert row['prompt'].strip() in bpe.decode(used)
  assert data.num_targets == sum(int((rows[i]['answer']['weights'] > 0).sum()) for i in range(len(rows)))


def test_long_answers_are_cut_and_long_prompts_left_out(tmp_path, bpe, caplog):
  long = [*ROWS[:3], {'prompt': 'Why? ' * 60, 'completion': 'a', 'label': True},
          {'prompt': 'Go on.', 'completion': 'Yes. ' * 60, 'label': False}]
  data = open_data(tmp_path, bpe, rated(tmp_path, long), seq_len=48)
  [rows] = data.parts.values()
  assert len(rows) == 4 and rows.num_left_out == 1 and rows.num_cut == 1
  assert '1 of 5 answers left out, their prompt fills seq_len=48' in caplog.text
  assert '1 of 4 answers are longer than seq_len=48 and are cut' in caplog.text
  assert all(rows[i]['mismatched']['tokens'].shape == (48,) for i in range(len(rows)))


def test_batches_are_padded_with_rows_without_targets(tmp_path, bpe):
  data = open_data(tmp_path, bpe, rated(tmp_path, ROWS, val_fraction=0.5), split='validation', seq_len=64)
  batches = list(validation_batches(data, 5))
  counted = sum(int((batch.answer.weights.sum(1) > 0).sum()) for batch in batches)
  assert counted == data.rows_per_epoch
  assert all(batch.is_desirable.shape == (5,) and batch.answer.tokens.shape == (5, 64) for batch in batches)


@pytest.mark.parametrize('row, message', [
  ({'prompt': 'a', 'completion': 'b'}, "no field 'label'"),
  ({'prompt': 'a', 'completion': 'b', 'label': 1}, 'label is 1.*give true for a desirable answer'),
  ({'prompt': 'a', 'completion': '', 'label': True}, 'completion|assistant|empty'),
  ({'completion': 'b', 'label': True}, "no field 'prompt'"),
])
def test_bad_rows_are_named(tmp_path, bpe, row, message):
  with pytest.raises(ConfigError, match=message):
    open_data(tmp_path, bpe, rated(tmp_path, [*ROWS, row]))


def test_one_answer_is_not_enough(tmp_path, bpe):
  with pytest.raises(ConfigError, match='1 of 1 answers begin within it, and two are needed'):
    open_data(tmp_path, bpe, rated(tmp_path, ROWS[:1]))
