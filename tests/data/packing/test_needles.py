"""Needle rows read back as text, and rebuilt from what they hold."""
import re

import numpy as np
import pytest

from llm_jax.config.errors import ConfigError
from llm_jax.data import token_store
from llm_jax.data.packing import needles
from llm_jax.data.packing.rows import RowSettings
from llm_jax.data.tokenizers import byte_level

WORDS = [a + b + c for a in 'bcdfgh' for b in 'aei' for c in 'lmnrst']
LINE = re.compile(r'\n>( [a-z]+)( [a-z]+)\n')


@pytest.fixture(scope='module')
def tokenizer():
  """Bytes, and an id for each of 108 words with the space before it."""
  ranks = {bytes([i]): i for i in range(256)}
  for word in WORDS:
    for end in range(2, len(word) + 2):
      ranks.setdefault(f' {word}'[:end].encode(), len(ranks))
  return byte_level.RankTokenizer(ranks, byte_level.pattern_for('gpt2', False), ['<|endoftext|>'], '<|endoftext|>')


@pytest.fixture(scope='module')
def store(tokenizer):
  text = tokenizer.encode(''.join(f'line {i} of the haystack\n' for i in range(500)))
  ids = np.array([tokenizer.eot, *text, tokenizer.eot], np.uint16)
  return token_store.TokenStore(ids, np.array([0, len(ids)]), 0, 'x', {})


def test_what_is_asked_was_said_before(tokenizer, store):
  rows, facts_seen = needles.NeedleRows(store, RowSettings(tokenizer, 256, seed=1), spacing=40), set()
  for i in range(40):
    row = rows[i]
    assert row['tokens'][0] == tokenizer.eot and (row['positions'] == np.arange(256)).all()
    assert (row['segment_ids'] == 1).all() and (row['targets'][:-1] == row['tokens'][1:]).all()
    text = tokenizer.decode([*row['tokens'][1:], row['targets'][-1]])
    lines = LINE.findall(text)
    said, asked = lines[:len(lines) // 2], lines[len(lines) // 2:]
    assert sorted(said) == sorted(asked) and len({key for key, _ in said}) == len(said)
    assert text.endswith(''.join(f'\n>{key}{values}\n' for key, values in asked))
    targets = tokenizer.decode(row['targets'][row['weights'] > 0])
    assert targets == ''.join(values for _, values in asked)
    assert LINE.sub('', text) in tokenizer.decode(store.tokens)  # nothing of the haystack is lost where a fact is put
    facts_seen.add(len(said))
  assert facts_seen == {1, 2, 3, 4, 5, 6}  # to one every 40 of 256 tokens


def test_a_row_is_a_function_of_seed_and_number(tokenizer, store):
  make = lambda seed: needles.NeedleRows(store, RowSettings(tokenizer, 128, seed=seed), 32)
  first, again, other = make(1), make(1), make(2)
  same = lambda a, b: all((a[name] == b[name]).all() for name in a)
  assert same(first[3], again[3]) and not same(first[3], first[4]) and not same(first[3], other[3])
  [ids] = first.documents(3)
  assert (ids[:-1] == first[3]['tokens']).all() and len(ids) == 129


def test_a_fact_is_planted_where_it_is_told(tokenizer):
  facts = needles.Facts(tokenizer)
  drawn = facts.draw(3, np.random.default_rng(0))
  hay = np.arange(1, 11)
  planted = facts.plant(hay, drawn, [10, 0, 4])
  expected = [[facts.eot], facts.line(drawn[1]), hay[:4], facts.line(drawn[2]), hay[4:], facts.line(drawn[0])]
  assert (planted == np.concatenate(expected)).all()
  assert len(facts.line(drawn[0])) == facts.length


def test_bad_input(tokenizer, store):
  with pytest.raises(ConfigError, match='64'):
    needles.Facts(byte_level.ByteTokenizer())
  with pytest.raises(ConfigError, match='seq_len'):
    needles.NeedleRows(store, RowSettings(tokenizer, 8, seed=0), 32)
  with pytest.raises(ConfigError, match='haystack has'):
    needles.NeedleRows(store, RowSettings(tokenizer, store.num_tokens, seed=0), 32)
