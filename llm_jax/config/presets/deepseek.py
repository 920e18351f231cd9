"""DeepSeek-V3 (DeepSeek-AI 2024, section 4.2): latent attention, a few dense layers and then many small experts and a
shared one, routed by sigmoids with a bias that balances the load, and a block that predicts one token further."""
import dataclasses
import math
from functools import partial

from llm_jax.config.model.architecture import (
  GLU,
  Architecture,
  Block,
  LatentAttention,
  MixtureOfExperts,
  NormalInit,
  RMSNorm,
  RoPE,
  SigmoidRouter,
  YaRNScaling,
)


def deepseek(d_model: int, num_layers: int, dense_layers: int, num_heads: int, q_rank: int | None, kv_rank: int,
             nope_dim: int, rope_dim: int, v_dim: int, d_ff: int, expert_d_ff: int, num_experts: int, top_k: int,
             shared_experts: int = 1, groups: int = 1, top_groups: int = 1, router_scale: float = 1.0,
             multi_token: int = 1, vocab_size: int = 129_280, rope_theta: float = 10_000.0,
             scaling: YaRNScaling | None = None, max_length: int | None = None, dropout: float = 0.0) -> Architecture:
  """Any size.

  dense_layers: how many come before those with experts.   d_ff: of the dense ones.   expert_d_ff: of one expert.
  scaling: YaRN as in their code: (0.1 ln(factor) + 1)^2, the temperature of a stretched context, multiplies the scores,
    and cosines and sines stay as they are.
  """
  norm, scale = RMSNorm(1e-6), None
  if scaling is not None:
    scale = scaling.magnitude ** 2 / math.sqrt(nope_dim + rope_dim)
    scaling = dataclasses.replace(scaling, attention_factor=1.0)
  attention = LatentAttention(num_heads, kv_rank, nope_dim, rope_dim, v_dim, q_rank, norm, scale)
  experts = MixtureOfExperts(
    num_experts, top_k, expert=GLU(expert_d_ff), shared=GLU(shared_experts * expert_d_ff) if shared_experts else None,
    router=SigmoidRouter(groups, top_groups, router_scale))
  dense, sparse = Block(attention, GLU(d_ff), norm), Block(attention, experts, norm)
  return Architecture(vocab_size, d_model, num_layers, prefix=(dense,) * dense_layers, pattern=(sparse,),
                      positions=RoPE(rope_theta, scaling, max_length), norm=norm, tied_head=False, dropout=dropout,
                      init=NormalInit(std=0.006, residual_std=0.006), multi_token=(sparse,) * multi_token)


# As released, for 163,840 tokens. Pre-training ran at 4,096, which is deepseek_v3(scaling=None, max_length=4_096).
deepseek_v3 = partial(
  deepseek, d_model=7_168, num_layers=61, dense_layers=3,
  num_heads=128, q_rank=1_536, kv_rank=512, nope_dim=128, rope_dim=64, v_dim=128,
  d_ff=18_432, expert_d_ff=2_048, num_experts=256, top_k=8, shared_experts=1,
  groups=8, top_groups=4, router_scale=2.5, multi_token=1,
  scaling=YaRNScaling(factor=40.0, original_length=4_096), max_length=163_840)
