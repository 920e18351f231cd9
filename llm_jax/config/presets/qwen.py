"""Qwen2, Qwen2.5 (Qwen Team 2024, Qwen2.5 Technical Report, table 1) and Qwen3 (Yang et al. 2025, tables 1 and 2):
Llama with grouped queries, a large vocabulary, and biases of queries, keys and values, which Qwen3 replaces by norms;
some of Qwen3 with experts."""
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
from llm_jax.config.model.attention import PerHeadNorm


def qwen2(d_model: int, num_layers: int, num_heads: int, num_kv_heads: int, d_ff: int, vocab_size: int = 151_936,
          tied_head: bool = False, rope_theta: float = 1e6, eps: float = 1e-6, head_dim: int | None = None,
          max_length: int | None = None, dropout: float = 0.0) -> Architecture:
  """Any size.   eps: of the norms."""
  attention = Attention(num_heads, num_kv_heads, head_dim, bias=True, out_bias=False)
  block = Block(attention, GLU(d_ff), RMSNorm(eps))
  return Architecture(vocab_size, d_model, num_layers, pattern=(block,), positions=RoPE(rope_theta, None, max_length),
                      norm=RMSNorm(eps), tied_head=tied_head, dropout=dropout)


def qwen3(d_model: int, num_layers: int, num_heads: int, num_kv_heads: int, d_ff: int, head_dim: int = 128,
          vocab_size: int = 151_936, tied_head: bool = False, rope_theta: float = 1e6, eps: float = 1e-6,
          max_length: int | None = None, dropout: float = 0.0) -> Architecture:
  """Any size.   eps: of the norms."""
  attention = Attention(num_heads, num_kv_heads, head_dim, qk_norm=PerHeadNorm(RMSNorm(eps)))
  block = Block(attention, GLU(d_ff), RMSNorm(eps))
  return Architecture(vocab_size, d_model, num_layers, pattern=(block,), positions=RoPE(rope_theta, None, max_length),
                      norm=RMSNorm(eps), tied_head=tied_head, dropout=dropout)


def qwen3_moe(d_model: int, num_layers: int, num_heads: int, num_kv_heads: int, d_ff: int, num_experts: int = 128,
              top_k: int = 8, head_dim: int = 128, vocab_size: int = 151_936, tied_head: bool = False,
              rope_theta: float = 1e6, eps: float = 1e-6, balance_weight: float = 0.001, max_length: int | None = None,
              dropout: float = 0.0) -> Architecture:
  """Any size.   d_ff: of one expert.   eps: of the norms.   balance_weight: the paper prints none; released
  configurations have 0.001 under `router_aux_loss_coef`. Experts are balanced over a whole step (section 2)."""
  attention = Attention(num_heads, num_kv_heads, head_dim, qk_norm=PerHeadNorm(RMSNorm(eps)))
  router = SoftmaxRouter(balance_weight, balance_over='step')
  block = Block(attention, MixtureOfExperts(num_experts, top_k, GLU(d_ff), router), RMSNorm(eps))
  return Architecture(vocab_size, d_model, num_layers, pattern=(block,), positions=RoPE(rope_theta, None, max_length),
                      norm=RMSNorm(eps), tied_head=tied_head, dropout=dropout)


# Qwen2.5. From 7B on the released embeddings are padded to 152,064 rows; from 14B on the norms have another eps.
_TIED = dict(tied_head=True, max_length=32_768)
_7B = dict(vocab_size=152_064, max_length=131_072)
_14B = dict(_7B, eps=1e-5)

qwen2_5_0_5b = partial(qwen2, d_model=896,   num_layers=24, num_heads=14, num_kv_heads=2, d_ff=4_864,  **_TIED)
qwen2_5_1_5b = partial(qwen2, d_model=1_536, num_layers=28, num_heads=12, num_kv_heads=2, d_ff=8_960,  **_TIED)
qwen2_5_3b   = partial(qwen2, d_model=2_048, num_layers=36, num_heads=16, num_kv_heads=2, d_ff=11_008, **_TIED)
qwen2_5_7b   = partial(qwen2, d_model=3_584, num_layers=28, num_heads=28, num_kv_heads=4, d_ff=18_944, **_7B)
qwen2_5_14b  = partial(qwen2, d_model=5_120, num_layers=48, num_heads=40, num_kv_heads=8, d_ff=13_824, **_14B)
qwen2_5_32b  = partial(qwen2, d_model=5_120, num_layers=64, num_heads=40, num_kv_heads=8, d_ff=27_648, **_14B)
qwen2_5_72b  = partial(qwen2, d_model=8_192, num_layers=80, num_heads=64, num_kv_heads=8, d_ff=29_568, **_14B)

# Qwen3. The released configurations allow 8,192 tokens of an answer behind 32,768 of a prompt.
_3 = dict(num_kv_heads=8, max_length=40_960)

qwen3_0_6b = partial(qwen3, d_model=1_024, num_layers=28, num_heads=16, d_ff=3_072,  tied_head=True, **_3)
qwen3_1_7b = partial(qwen3, d_model=2_048, num_layers=28, num_heads=16, d_ff=6_144,  tied_head=True, **_3)
qwen3_4b   = partial(qwen3, d_model=2_560, num_layers=36, num_heads=32, d_ff=9_728,  tied_head=True, **_3)
qwen3_8b   = partial(qwen3, d_model=4_096, num_layers=36, num_heads=32, d_ff=12_288, **_3)
qwen3_14b  = partial(qwen3, d_model=5_120, num_layers=40, num_heads=40, d_ff=17_408, **_3)
qwen3_32b  = partial(qwen3, d_model=5_120, num_layers=64, num_heads=64, d_ff=25_600, **_3)

_MOE = dict(num_kv_heads=4, max_length=40_960)

qwen3_30b_a3b   = partial(qwen3_moe, d_model=2_048, num_layers=48, num_heads=32, d_ff=768,   **_MOE)
qwen3_235b_a22b = partial(qwen3_moe, d_model=4_096, num_layers=94, num_heads=64, d_ff=1_536, **_MOE)
