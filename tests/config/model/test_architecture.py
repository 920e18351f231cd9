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
  NormalInit,
  NTKScaling,
  RMSNorm,
  RoPE,
  SigmoidRouter,
  SoftmaxRouter,
  YaRNScaling,
  ZeroCenteredRMSNorm,
)


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
