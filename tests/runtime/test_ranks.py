"""Ranks in words."""
import pytest

from llm_jax.runtime.ranks import in_words


@pytest.mark.parametrize('ranks, words', [
  ([], ''), ([3], '3'), ([1, 2], '1, 2'), ([1, 2, 3], '1-3'), ([0, 2, 3, 5, 6, 7, 8], '0, 2, 3, 5-8'),
  (range(1, 1_024), '1-1023')])
def test_runs_are_named_by_their_ends(ranks, words):
  assert in_words(ranks) == words
