"""Parts of a decoder that could not run, or would silently be something else, are refused when they are made."""
import dataclasses

import pytest

from llm_jax.config import presets
from llm_jax.config.errors import ConfigError
from llm_jax.config.model.architecture import (
  GLU,
  MLP,
  Attention,
  LatentAttention,
  LayerNorm,
  LongRoPEScaling,
  NormalInit,
  NTKScaling,
  RMSNorm,
  RoPE,
  SigmoidRouter,
  SoftmaxRouter,
  YaRNScaling,
  ZeroCenteredRMSNorm,
)

LONGROPE = LongRoPEScaling((1.0, 1.5), (2.0, 4.0), 4.0, original_length=16)


@pytest.mark.parametrize('make, field', (
  (lambda: Attention(4, head_dim=0), 'head_dim'),
  (lambda: Attention(4, head_dim=-8), 'head_dim'),
  (lambda: LatentAttention(2, 4, 4, 4, 4, scale=-1.0), 'scale'),
  (lambda: MLP(0), 'd_ff'),
  (lambda: GLU(-8), 'd_ff'),
  (lambda: LayerNorm(-1e-5), 'eps'),
  (lambda: RMSNorm(float('nan')), 'eps'),
  (lambda: ZeroCenteredRMSNorm(float('inf')), 'eps'),
  (lambda: SoftmaxRouter(-0.01), 'balance_weight'),
  (lambda: SoftmaxRouter(z_weight=-1.0), 'z_weight'),
  (lambda: SigmoidRouter(scale=0.0), 'scale'),
  (lambda: SigmoidRouter(bias_rate=-1e-3), 'bias_rate'),
  (lambda: SigmoidRouter(sequence_balance_weight=-1.0), 'sequence_balance_weight'),
  (lambda: YaRNScaling(4.0, 16, attention_factor=0.0), 'attention_factor'),
  (lambda: LongRoPEScaling((1.0,), (1.0, 2.0), 4.0, 16), 'long_factors'),
  (lambda: LongRoPEScaling((1.0, 1.0), (1.0, 0.0), 4.0, 16), 'long_factors'),
  (lambda: LongRoPEScaling((-1.0,), (1.0,), 4.0, 16), 'short_factors'),
  (lambda: LongRoPEScaling((1.0,), (1.0,), 0.5, 16), 'factor'),
  (lambda: LongRoPEScaling((1.0,), (1.0,), 4.0, 1), 'original_length'),
  (lambda: LongRoPEScaling((1.0,), (1.0,), 4.0, 16, attention_factor=0.0), 'attention_factor'),
  (lambda: SoftmaxRouter(weights_over='some'), 'weights_over'),
  (lambda: Attention(4, rotary_dim=0), 'rotary_dim'),
  (lambda: presets.phi3(32, 1, 4, 8, rotary_dim=10), r'pattern\[0\].attention.rotary_dim'),
  (lambda: presets.phi3(32, 1, 4, 8, rotary_dim=5), r'pattern\[0\].attention.rotary_dim'),
  (lambda: presets.phi3(32, 1, 4, 8, scaling=LONGROPE), r'pattern\[0\].attention.head_dim'),
  (lambda: NormalInit(std=-0.02), 'std'),
  (lambda: NormalInit(residual_std=-0.02), 'residual_std'),
  (lambda: dataclasses.replace(presets.llama(8, 1, 4), positions=RoPE(scaling=NTKScaling(2.0))), 'head_dim'),
))
def test_impossible_parts_are_refused(make, field):
  with pytest.raises(ConfigError, match=f'{field} = '):
    make()


def test_no_shared_expert():
  model = presets.deepseek(16, 2, 1, 4, 8, 8, 6, 4, 5, 24, 8, num_experts=4, top_k=2, shared_experts=0)
  assert model.pattern[0].feed_forward.shared is None


def test_a_decoder_at_a_length():
  """Both places where rotary positions stand; what does not go by the length is the same decoder."""
  model = presets.phi3(32, 2, 4, 8, rotary_dim=4, scaling=LONGROPE)
  [block] = model.pattern
  own = RoPE(500.0, dataclasses.replace(LONGROPE, original_length=40))
  both = dataclasses.replace(model, prefix=(dataclasses.replace(block, attention=dataclasses.replace(
    block.attention, positions=own)),), num_layers=3)
  assert model.switch_lengths == (16,) and both.switch_lengths == (16, 40)
  short, long = LONGROPE.short_factors, LONGROPE.long_factors
  for length, factors, of_own in ((16, short, short), (17, long, short), (41, long, long)):
    settled = both.at_length(length)
    assert settled.switch_lengths == () and settled.at_length(1) == settled
    for rope, want in ((settled.positions, factors), (settled.prefix[0].attention.positions, of_own)):
      assert rope.scaling.short_factors == rope.scaling.long_factors == want
  llama = presets.llama(32, 2, 4)
  assert llama.switch_lengths == () and llama.at_length(5) is llama
