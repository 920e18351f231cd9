"""Answers that share rows: each is there whole, and nothing of it is lost on the way back."""
import numpy as np
import pytest

from llm_jax.config.errors import ConfigError
from llm_jax.config.rewards import Exact
from llm_jax.config.rollout import Rollout
from llm_jax.rollout.packing import in_parts, pack

LENGTHS = np.array([3, 9, 1, 16, 5, 7, 2, 8])
NUMBERS = np.array([4, 0, 11, 2, 9, 7, 5, 3])  # of 12 in the rollout


def test_every_answer_is_there_whole_and_in_order():
  layout = pack(NUMBERS, LENGTHS, seq_len=16)
  assert layout.num_tokens == LENGTHS.sum()
  assert len(layout.answers) == 4  # 51 tokens
  for number, length in zip(NUMBERS, LENGTHS, strict=True):
    rows, columns = np.nonzero(layout.answers == number)
    assert len(set(rows)) == 1 and len(rows) == length
    np.testing.assert_array_equal(columns, columns[0] + np.arange(length))
    np.testing.assert_array_equal(layout.places[rows, columns], np.arange(length))
    assert len(set(layout.segment_ids[rows, columns])) == 1
  for answers, segments in zip(layout.answers, layout.segment_ids, strict=True):
    assert len(set(answers[answers >= 0])) == segments.max()
    assert ((segments == 0) == (answers < 0)).all()


def test_what_is_gathered_is_put_back():
  layout = pack(NUMBERS, LENGTHS, seq_len=16)
  values = np.random.default_rng(0).normal(size=(12, 20)).astype(np.float32)
  want = np.zeros_like(values)
  for number, length in zip(NUMBERS, LENGTHS, strict=True):
    want[number, :length] = values[number, :length]
  found = np.zeros_like(values)
  layout.scatter(layout.gather(values), found)
  np.testing.assert_array_equal(found, want)


def test_parts_hold_all_rows_and_the_last_is_small():
  layout = pack(NUMBERS, np.full(8, 10), seq_len=16)  # each has a row of its own
  parts = list(in_parts(layout, (6, 4, 2)))
  assert [len(part.answers) for part in parts] == [6, 2]
  found = np.concatenate([part.answers for part in parts])
  np.testing.assert_array_equal(found, layout.answers)
  [part] = in_parts(pack(NUMBERS[:3], LENGTHS[:3], seq_len=16), (4, 2))
  assert part.answers.shape == (2, 16) and part.is_padding[1].all()


def test_numbers_of_rows():
  rollout = Rollout((Exact(),))
  assert rollout.row_counts(256) == (256, 192, 144, 108)
  assert rollout.row_counts(256, unit=64) == (256, 192, 128)
  assert Rollout((Exact(),), buckets=1).row_counts(8) == (8,)
  with pytest.raises(ConfigError, match='buckets = 9: each is compiled: use 8 or fewer'):
    Rollout((Exact(),), buckets=9)
