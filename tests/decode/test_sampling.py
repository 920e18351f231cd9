"""Which token comes next, against independent NumPy and against transformers' logit processors."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from llm_jax import hf
from llm_jax.config.errors import ConfigError
from llm_jax.decode.generate import generate, stream
from llm_jax.decode.sampling import GREEDY, Greedy, Sampling, choose, distribution, filter_logits, init_seen, mark_seen

SETTINGS = [Sampling(0.7), Sampling(1.0, top_k=3), Sampling(1.3, top_p=0.6), Sampling(0.5, top_k=6, top_p=0.9),
            Sampling(1.4, min_p=0.1), Sampling(1.2, 12, 0.97, 0.05), Sampling(min_p=1.0),
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
    if sampling.min_p is not None and weight < sampling.min_p * weights[0]:
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


def processors(sampling):
  """transformers' processors for `sampling`, in the order in which its `generate` lines them up."""
  torch.manual_seed(0)
  model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=23, n_embd=4, n_layer=1, n_head=1))
  chosen = dict(top_k=sampling.top_k, top_p=sampling.top_p, min_p=sampling.min_p)
  settings = transformers.GenerationConfig(
      do_sample=True, temperature=sampling.temperature, repetition_penalty=sampling.repetition_penalty,
      **{'top_k': 0, 'top_p': 1.0} | {name: value for name, value in chosen.items() if value is not None})
  return model._get_logits_processor(settings, input_ids_seq_length=4, device='cpu')


PENALISED = [Sampling(0.8, repetition_penalty=1.3), Sampling(1.2, 12, 0.9, 0.1, 0.7),
             Sampling(1.1, top_p=0.8, repetition_penalty=2.5)]


@pytest.mark.parametrize('sampling', SETTINGS[:6] + PENALISED)
def test_filter_equals_transformers(sampling):
  tokens = np.random.default_rng(1).integers(0, 23, (5, 9))
  seen = init_seen(sampling, jnp.array(tokens), jnp.ones(tokens.shape, bool), 23)
  assert (seen is None) == (sampling.repetition_penalty == 1)
  expected = processors(sampling)(torch.from_numpy(tokens), torch.from_numpy(logits()))
  ours = filter_logits(jnp.array(logits()), sampling, seen)
  np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-6)
  np.testing.assert_allclose(distribution(jnp.array(logits()), sampling, seen), expected.softmax(-1).numpy(),
                             rtol=1e-5, atol=1e-9)


def test_seen_leaves_padding_out():
  sampling = Greedy(2.0)
  seen = init_seen(sampling, jnp.array([[0, 0, 3], [0, 5, 5]]), jnp.array([[0, 0, 1], [1, 1, 1]], bool), 6)
  seen = mark_seen(seen, jnp.array([4, 0]))
  assert [np.flatnonzero(row).tolist() for row in np.array(seen)] == [[3, 4], [0, 5]]


@pytest.mark.parametrize('penalty', [1.4, 0.6])
def test_penalised_greedy_tokens_equal_transformers(penalty):
  torch.manual_seed(0)
  theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(
      vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
      bos_token_id=None, eos_token_id=None, pad_token_id=0, initializer_range=0.3)).eval()
  config = hf.config_from_hf(theirs.config.to_dict())
  params = hf.params_from_state_dict(config, {k: v.numpy() for k, v in theirs.state_dict().items()})
  prompts = [[1, 2, 3], [0], [7, 8, 9, 10, 11, 12, 13]]
  ours = generate(config, params, prompts, 12, Greedy(penalty)).tokens
  assert ours != generate(config, params, prompts, 12).tokens
  for prompt, tokens in zip(prompts, ours, strict=True):
    given = torch.tensor([prompt])
    expected = theirs.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=12, do_sample=False,
                               repetition_penalty=penalty)
    assert tokens == expected[0, len(prompt):].tolist()
  pieces = list(stream(config, params, prompts, 12, Greedy(penalty)))
  assert [sum((piece[row] for piece in pieces), []) for row in range(3)] == ours


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


@pytest.mark.parametrize('vocab', [1, 2, 12, 97, 120, 256])  # 97 is prime: one part
def test_greedy_among_equals_in_many_parts(vocab):
  rows = np.random.default_rng(0).integers(0, 4, (200, vocab)).astype(np.float32)
  rows[:50][rows[:50] > 0] = -np.inf
  assert choose(jnp.array(rows), GREEDY, None).tolist() == np.argmax(rows, -1).tolist()
  assert 0 <= int(choose(jnp.full((1, vocab), jnp.nan), GREEDY, None)[0]) < vocab


@pytest.mark.parametrize('wrong', [dict(temperature=0.0), dict(temperature=1e-38), dict(temperature=float('nan')),
                                   dict(top_k=0), dict(top_p=0.0), dict(top_p=1.5), dict(min_p=0.0), dict(min_p=1.1),
                                   dict(repetition_penalty=0.0), dict(repetition_penalty=float('inf'))])
def test_wrong_settings_are_named(wrong):
  with pytest.raises(ConfigError, match=next(iter(wrong))):
    Sampling(**wrong)


def test_temperature_zero_has_another_name_in_code():
  with pytest.raises(ConfigError, match=r'temperature = 0.0: .*--temperature=0, in code Greedy\(\)'):
    Sampling(0.0)


def test_wrong_greedy_is_named():
  with pytest.raises(ConfigError, match='repetition_penalty'):
    Greedy(-1.0)
