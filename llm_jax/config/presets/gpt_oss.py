"""gpt-oss (OpenAI 2025, gpt-oss-120b & gpt-oss-20b Model Card, section 2; released configurations): experts with biases
and a clamped SwiGLU, a sink in each head, a window in every other layer."""
import dataclasses
from functools import partial

from llm_jax.config.model.architecture import (
  Architecture,
  Attention,
  Block,
  ClampedGLU,
  MixtureOfExperts,
  RMSNorm,
  RoPE,
  SoftmaxRouter,
  YaRNScaling,
)


def gpt_oss(d_model: int, num_layers: int, num_heads: int, num_kv_heads: int, d_ff: int, num_experts: int,
            top_k: int = 4, head_dim: int | None = 64, window: int = 128, limit: float = 7.0, vocab_size: int = 201_088,
            rope_theta: float = 150_000.0, scaling: YaRNScaling | None = None, balance_weight: float = 0.001,
            max_length: int | None = None, dropout: float = 0.0) -> Architecture:
  """Any size with an even number of layers: one with a window, one that sees all tokens, and so on.

  d_ff: of one of the two halves of an expert's SwiGLU.
  limit: where these halves are cut.
  balance_weight: of one loss over the tokens of all layers. The model card prints none; 0.001 is what `transformers`
    assumes, and the released configurations say 0.9 under `router_aux_loss_coef`.
  """
  norm = RMSNorm(1e-5)
  everywhere = Attention(num_heads, num_kv_heads, head_dim, bias=True, sinks=True)
  local = dataclasses.replace(everywhere, window=window)
  router = SoftmaxRouter(balance_weight, layers_together=True, bias=True)
  experts = MixtureOfExperts(num_experts, top_k, ClampedGLU(d_ff, limit, bias=True), router)
  pattern = tuple(Block(attention, experts, norm) for attention in (local, everywhere))
  return Architecture(vocab_size, d_model, num_layers, pattern=pattern,
                      positions=RoPE(rope_theta, scaling, max_length), norm=norm, tied_head=False, dropout=dropout)


_RELEASED = dict(d_model=2_880, num_heads=64, num_kv_heads=8, d_ff=2_880, balance_weight=0.9, max_length=131_072,
                 scaling=YaRNScaling(32.0, 4_096, truncate=False))

gpt_oss_20b  = partial(gpt_oss, num_layers=24, num_experts=32,  **_RELEASED)
gpt_oss_120b = partial(gpt_oss, num_layers=36, num_experts=128, **_RELEASED)
