"""The trigram baseline against a slow model made of dictionaries; the compressor against the program `xz`."""
import collections
import lzma
import math
import os
import shutil
import subprocess

import numpy as np
import pytest

from llm_jax.evaluation import baselines

VOCAB, EOT = 11, 10


def documents(seed, count, length=60):
  """Markov chains between two special tokens, one document empty."""
  rng = np.random.default_rng(seed)
  for i in range(count):
    text = [int(rng.integers(10))]
    while len(text) < (0 if i == 2 else length + i):
      text.append((text[-1] * 3 + int(rng.choice([0, 1, 5], p=[.7, .2, .1]))) % 9)  # 9 appears at starts only
    yield np.array([EOT, *(text if i != 2 else []), EOT], np.uint16)


def reference(train, validation, cut_share=0.05, seed=0):
  """The same model, written token by token with dictionaries."""
  def events(docs):
    for doc in docs:
      previous = [None, *(int(t) for t in doc)]
      yield from ((previous[i - 1], previous[i], previous[i + 1]) for i in range(1, len(previous) - 1))

  def count(all_events):
    tables = [collections.Counter() for _ in range(6)]
    for u, v, w in all_events:
      for table, key in zip(tables, ((), w, v, (v, w), (u, v), (u, v, w)), strict=True):
        table[key] += 1
    return tables

  def bucket(tables, u, v):
    pair = tables[4][u, v]
    return 1 + len(bin(pair)) - 2 if pair else int(tables[2][v] > 0)

  def parts(tables, u, v, w):
    def ratio(a, b):
      return a / b if b else 0.0
    return [1 / VOCAB, ratio(tables[1][w], tables[0][()]), ratio(tables[3][v, w], tables[2][v]),
            ratio(tables[5][u, v, w], tables[4][u, v])]

  equal = {0: [.5, .5, 0, 0], 1: [1 / 3, 1 / 3, 1 / 3, 0]}
  order = np.random.default_rng(seed).permutation(len(train))
  train = list(events([train[i] for i in order]))
  cut = len(train) - math.ceil(len(train) * cut_share)
  tables = count(train[:cut])
  weights = {}
  for _ in range(baselines.EM_STEPS):
    sums = {}
    for u, v, w in train[cut:]:
      b = bucket(tables, u, v)
      shares = [x * p for x, p in zip(weights.get(b, equal.get(b, [.25] * 4)), parts(tables, u, v, w), strict=True)]
      total = sums.setdefault(b, [x / 2 for x in equal.get(b, [.25] * 4)])
      for k in range(4):
        total[k] += shares[k] / sum(shares)
    weights = {b: [x / sum(total) for x in total] for b, total in sums.items()}
  tables = count(train)
  nats = 0.0
  for u, v, w in events(validation):
    b = bucket(tables, u, v)
    lam = weights.get(b, equal.get(b, [.25] * 4))
    nats -= math.log(sum(x * p for x, p in zip(lam, parts(tables, u, v, w), strict=True)))
  return nats


def test_trigram_agrees_with_dictionaries():
  train, validation = list(documents(0, 12)), list(documents(1, 5))
  num_bytes = sum(len(d) - 2 for d in validation)
  ours = baselines.trigram_bits_per_byte(iter(train), iter(validation), VOCAB, num_bytes)
  assert ours == pytest.approx(reference(train, validation) / math.log(2) / num_bytes, rel=1e-12)
  entropy = -sum(p * math.log2(p) for p in (.7, .2, .1))
  assert entropy < ours < math.log2(VOCAB)


def test_probabilities_sum_to_one_in_every_context():
  """Seen, half seen and unseen contexts alike, whatever the fitted weights."""
  train = baselines.trigrams(documents(0, 6), VOCAB + 3)  # three tokens that nobody has seen
  weights = baselines.TrigramModel(train, VOCAB + 3).fit_weights(baselines.trigrams(documents(2, 2), VOCAB + 3))
  model = baselines.TrigramModel(train, VOCAB + 3, weights)
  u, v, w = (x.ravel() for x in np.meshgrid(np.arange(VOCAB + 4), np.arange(VOCAB + 3), np.arange(VOCAB + 3),
                                            indexing='ij'))
  p = model.probabilities((u, v, w)).reshape(-1, VOCAB + 3)
  assert {0, 1, 2, 3} <= set(model.bucket(u, v).tolist())
  np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)
  assert p.min() > 0


def test_em_never_lowers_the_likelihood():
  model = baselines.TrigramModel(baselines.trigrams(documents(0, 8), VOCAB), VOCAB)
  left_out = baselines.trigrams(documents(3, 4), VOCAB)
  before = np.log(model.probabilities(left_out)).sum()
  model.weights = model.fit_weights(left_out)
  assert np.log(model.probabilities(left_out)).sum() > before


def test_trigrams_restart_with_every_document():
  u, v, w = baselines.trigrams([np.array([9, 1, 2, 9]), np.array([9, 9]), np.array([9, 3, 9])], 10)
  assert list(zip(u.tolist(), v.tolist(), w.tolist(), strict=True)) == [
      (10, 9, 1), (9, 1, 2), (1, 2, 9), (10, 9, 9), (10, 9, 3), (9, 3, 9)]


def test_tiny_and_empty_training_sets_still_give_a_number():
  validation = [np.array([EOT, 1, 2, EOT])]
  assert baselines.trigram_bits_per_byte([], validation, VOCAB, 2) == pytest.approx(3 * (math.log2(VOCAB) + 1) / 2)
  assert math.isfinite(baselines.trigram_bits_per_byte([np.array([EOT, 3, EOT])], validation, VOCAB, 2))


def test_a_vocabulary_whose_keys_overflow_is_refused():
  with pytest.raises(ValueError, match='vocab_size = 3000000'):
    baselines.TrigramModel(baselines.trigrams([], 3_000_000), 3_000_000)


def test_xz_is_the_program_xz():
  chunks = [open(os.__file__, 'rb').read(), b'', open(lzma.__file__, 'rb').read()]
  text = b''.join(chunks)
  xz = shutil.which('xz')
  expected = len(subprocess.run([xz, '-9', '-c'], input=text, capture_output=True, check=True).stdout
                 if xz else lzma.compress(text, preset=9))
  assert baselines.xz_bits_per_byte(iter(chunks)) == pytest.approx(8 * expected / len(text), abs=8 * 64 / len(text))
  assert math.isnan(baselines.xz_bits_per_byte([]))


def test_bits_per_byte():
  assert baselines.bits_per_byte(math.log(256) * 7, 7) == pytest.approx(8)
