"""Mixtral (Jiang et al. 2024, table 1): Mistral without its window, each feed-forward replaced by 8 experts, of which a
router picks 2 for every token."""
from functools import partial

from llm_jax.config.model.architecture import (
  GLU,
  Architecture,
  Attention,
  Block,
  MixtureOfExperts,
  RMSNorm,
  RoPE,
  SoftmaxRouter,
)


def mixtral(d_model: int, num_layers: int, num_heads: int, num_kv_heads: int, d_ff: int, num_experts: int = 8,
            top_k: int = 2, vocab_size: int = 32_000, rope_theta: float = 1e6, balance_weight: float = 0.02,
            head_dim: int | None = None, max_length: int | None = None, dropout: float = 0.0) -> Architecture:
  """Any size.   d_ff: of one expert.   balance_weight: the paper prints none; released configurations have 0.02 (8x7B)
  and 0.001 (8x22B) under `router_aux_loss_coef`."""
  experts = MixtureOfExperts(num_experts, top_k, expert=GLU(d_ff), router=SoftmaxRouter(balance_weight))
  block = Block(Attention(num_heads, num_kv_heads, head_dim), experts, RMSNorm())
  return Architecture(vocab_size, d_model, num_layers, pattern=(block,),
                      positions=RoPE(rope_theta, max_length=max_length), norm=RMSNorm(), tied_head=False,
                      dropout=dropout)


mixtral_8x7b  = partial(mixtral, d_model=4_096, num_layers=32, num_heads=32, num_kv_heads=8, d_ff=14_336,
                        max_length=32_768)
mixtral_8x22b = partial(mixtral, d_model=6_144, num_layers=56, num_heads=48, num_kv_heads=8, d_ff=16_384,
                        max_length=65_536, balance_weight=0.001)
