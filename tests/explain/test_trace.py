"""What is read out of a forward pass, against what `transformers` gives when it is asked for the same."""
import functools

import numpy as np
import pytest
import torch

from llm_jax.config.errors import ConfigError
from llm_jax.explain.trace import trace
from tests.hf import hf_models

# Learned positions and a norm after each sum; a parallel block; windows, sinks and experts; latent attention.
QUICK = ('openai gpt', 'gpt_neox', 'gpt_oss', 'deepseek')
CASES = [pytest.param(case, marks=[] if case in QUICK else [pytest.mark.slow]) for case in hf_models.CASES]


# The most that a weight may differ. In float32 `transformers` itself is 1.2e-6 from its float64 where the large weights
# of eight layers add up.
TOLERANCE = {'gemma3': 2e-6}
TOKENS = np.asarray(hf_models.batch().tokens)[0].tolist()


@functools.cache
def traced(case):
  model = hf_models.make(hf_models.CASES[case])
  return model, trace(*hf_models.to_ours(model), TOKENS)


def reference(model):
  """Attention weights and hidden states, computed in float64 so that the other's rounding is not counted as ours."""
  model.set_experts_implementation('eager')  # the only one in float64
  with torch.no_grad():
    return model.double()(torch.tensor([TOKENS]), output_attentions=True, output_hidden_states=True)


@pytest.mark.parametrize('case', CASES)
def test_attention_and_hidden_states(case):
  model, got = traced(case)
  want = reference(model)
  for layer, weights in zip(got.layers, want.attentions, strict=True):
    np.testing.assert_allclose(layer.weights_HTS, weights[0].numpy(), rtol=0, atol=TOLERANCE.get(case, 1e-6))
    sums = layer.weights_HTS.sum(-1) + (0 if layer.sinks_HT is None else layer.sinks_HT)
    np.testing.assert_allclose(sums, 1, atol=1e-5)

  hidden = [state[0].numpy() for state in want.hidden_states]  # the last one is the head's input
  for residual, state in zip((*got.residuals[:-1], got.features_TD), hidden, strict=True):
    np.testing.assert_allclose(residual, state, rtol=0, atol=1e-5 * max(1, np.abs(state).max()))
  np.testing.assert_allclose(got.logits_TV, want.logits[0].numpy(), rtol=0, atol=1e-5)
  assert got.error <= 1e-6


def added(before, layer):
  return before + layer.attention_TD + layer.feed_forward_TD


def test_what_is_added_makes_the_residual_stream():
  """But where a norm follows each sum."""
  for case in ('gpt_neox', 'openai gpt'):
    _, got = traced(case)
    for before, layer in zip(got.residuals, got.layers, strict=False):
      if not layer.normalises_sums:
        np.testing.assert_allclose(added(before, layer), layer.residual_TD, rtol=0, atol=1e-6)
    assert got.layers[0].normalises_sums == (case == 'openai gpt')


def test_experts_are_those_that_transformers_chooses():
  model, got = traced('gpt_oss')
  chosen = []
  for layer in model.model.layers:
    layer.mlp.router.register_forward_hook(lambda module, given, output: chosen.append(output))
  reference(model)
  for layer, (_, weights, experts) in zip(got.layers, chosen, strict=True):
    np.testing.assert_array_equal(layer.experts_TX, experts.numpy())
    np.testing.assert_allclose(layer.expert_weights_TX, weights.numpy(), atol=1e-6)


@pytest.mark.parametrize('tokens, hint', [([], 'at least one'), ([0, 200], 'vocabulary has 131'),
                                          ([-1], 'vocabulary has 131'), ([1] * 60, '48 learned positions')])
def test_bad_tokens_are_refused(tokens, hint):
  config, params = hf_models.to_ours(hf_models.make(hf_models.CASES['gpt2']))
  with pytest.raises(ConfigError, match=hint):
    trace(config, params, tokens)
