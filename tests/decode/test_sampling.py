"""Which token comes next, against independent NumPy and against transformers' logit processors."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from llm_jax.config.errors import ConfigError
from llm_jax.decode.sampling import GREEDY, Sampling, choose, filter_logits

SETTINGS = [Sampling(0.7), Sampling(1.0, top_k=3), Sampling(1.3, top_p=0.6), Sampling(0.5, top_k=6, top_p=0.9),
            Sampling(top_k=1), Sampling(top_p=1e-6), Sampling(top_k=1000, top_p=1.0)]


def logits(rows=5, vocab=23):
  return np.random.default_rng(0).normal(size=(rows, vocab), scale=2).astype(np.float32)


def numpy_filter(row, sampling):
  """Straight from the definitions, one token after the other."""
  row = row.astype(np.float64) / sampling.temperature
  order = sorted(range(len(row)), key=lambda i: -row[i])[:sampling.top_k]
  weights = np.exp(row[order] - row[order].max())
  weights /= weights.sum()
  kept, total = [], 0.0
  for token, weight in zip(order, weights, strict=True):
    if sampling.top_p is not None and total >= sampling.top_p:
      break
    kept.append(token)
    total += weight
  return {token: row[token] for token in kept}


@pytest.mark.parametrize('sampling', SETTINGS)
def test_filter_equals_its_definition(sampling):
  for row, filtered in zip(logits(), np.array(filter_logits(jnp.array(logits()), sampling)), strict=True):
    expected = numpy_filter(row, sampling)
    assert set(np.flatnonzero(np.isfinite(filtered))) == set(expected)
    for token, value in expected.items():
      np.testing.assert_allclose(filtered[token], value, rtol=1e-6)


@pytest.mark.parametrize('sampling', SETTINGS[:4])
def test_filter_equals_transformers(sampling):
  scores = torch.from_numpy(logits())
  scores = transformers.TemperatureLogitsWarper(sampling.temperature)(None, scores)
  if sampling.top_k is not None:
    scores = transformers.TopKLogitsWarper(sampling.top_k)(None, scores)
  if sampling.top_p is not None:
    scores = transformers.TopPLogitsWarper(sampling.top_p)(None, scores)
  np.testing.assert_allclose(filter_logits(jnp.array(logits()), sampling), scores.numpy(), rtol=1e-6)


def test_draws_follow_the_filtered_distribution():
  """Pearson's chi-square over 4,000 draws: below the 0.999 quantile for the 4 degrees of freedom of 5 kept tokens."""
  sampling, count = Sampling(0.8, top_k=5), 4_000
  row = jnp.array(logits(rows=1))
  drawn = np.array(choose(jnp.repeat(row, count, axis=0), sampling, jax.random.split(jax.random.key(7), count)))
  probabilities = np.array(jax.nn.softmax(filter_logits(row, sampling)))[0]
  observed = np.bincount(drawn, minlength=len(probabilities))
  assert observed[probabilities == 0].sum() == 0
  expected = count * probabilities[probabilities > 0]
  assert ((observed[probabilities > 0] - expected) ** 2 / expected).sum() < 18.47


def test_greedy_takes_the_first_maximum():
  rows = jnp.array([[0.0, 2.0, 2.0], [3.0, 1.0, 3.0], [-jnp.inf, -jnp.inf, -1.0]])
  assert choose(rows, GREEDY, None).tolist() == np.argmax(rows, -1).tolist() == [1, 0, 2]
  assert 0 <= int(choose(jnp.full((1, 3), jnp.nan), GREEDY, None)[0]) < 3


@pytest.mark.parametrize('wrong', [dict(temperature=0.0), dict(temperature=float('nan')), dict(top_k=0),
                                   dict(top_p=0.0), dict(top_p=1.5)])
def test_wrong_settings_are_named(wrong):
  with pytest.raises(ConfigError, match=next(iter(wrong))):
    Sampling(**wrong)
