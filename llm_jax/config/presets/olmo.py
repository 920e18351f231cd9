"""OLMo 2 (OLMo et al. 2024, table 1; released configurations) and OLMo 3 (released configurations): Llama with norms on
what attention and feed-forward add, and on queries and keys over all heads. In OLMo 3 three of four layers have a
window."""
import dataclasses
from functools import partial

from llm_jax.config.model.architecture import (
  GLU,
  Architecture,
  Attention,
  OutputNormBlock,
  RMSNorm,
  RoPE,
  YaRNScaling,
)
from llm_jax.config.model.attention import FullWidthNorm


def olmo2(d_model: int, num_layers: int, num_heads: int, d_ff: int, num_kv_heads: int | None = None,
          vocab_size: int = 100_352, rope_theta: float = 500_000.0, eps: float = 1e-6, head_dim: int | None = None,
          max_length: int | None = None, dropout: float = 0.0) -> Architecture:
  """Any size.   eps: of the norms."""
  norm = RMSNorm(eps)
  attention = Attention(num_heads, num_kv_heads, head_dim, qk_norm=FullWidthNorm(norm))
  return Architecture(vocab_size, d_model, num_layers, pattern=(OutputNormBlock(attention, GLU(d_ff), norm),),
                      positions=RoPE(rope_theta, None, max_length), norm=norm, tied_head=False, dropout=dropout)


def olmo3(d_model: int, num_layers: int, num_heads: int, d_ff: int, num_kv_heads: int | None = None,
          window: int = 4_096, scaling: YaRNScaling | None = None, vocab_size: int = 100_278,
          rope_theta: float = 500_000.0, eps: float = 1e-6, head_dim: int | None = None,
          max_length: int | None = None, dropout: float = 0.0) -> Architecture:
  """Any size with a multiple of four layers: three with a window, then one that sees all tokens.

  scaling: of the layers that see all tokens; those with a window keep the plain rotation.
  """
  norm = RMSNorm(eps)
  everywhere = Attention(num_heads, num_kv_heads, head_dim, qk_norm=FullWidthNorm(norm))
  own = None if scaling is None else RoPE(rope_theta)
  local = dataclasses.replace(everywhere, window=window, positions=own)
  pattern = tuple(OutputNormBlock(attention, GLU(d_ff), norm) for attention in (local, local, local, everywhere))
  return Architecture(vocab_size, d_model, num_layers, pattern=pattern,
                      positions=RoPE(rope_theta, scaling, max_length), norm=norm, tied_head=False, dropout=dropout)


olmo2_1b  = partial(olmo2, d_model=2_048, num_layers=16, num_heads=16, d_ff=8_192,  max_length=4_096)
olmo2_7b  = partial(olmo2, d_model=4_096, num_layers=32, num_heads=32, d_ff=11_008, max_length=4_096)
olmo2_13b = partial(olmo2, d_model=5_120, num_layers=40, num_heads=40, d_ff=13_824, max_length=4_096)
olmo2_32b = partial(olmo2, d_model=5_120, num_layers=64, num_heads=40, d_ff=27_648, max_length=4_096, num_kv_heads=8)

_YARN = dict(scaling=YaRNScaling(8.0, 8_192), max_length=65_536)

olmo3_7b  = partial(olmo3, d_model=4_096, num_layers=32, num_heads=32, d_ff=11_008, **_YARN)
olmo3_32b = partial(olmo3, d_model=5_120, num_layers=64, num_heads=40, d_ff=27_648, num_kv_heads=8, **_YARN)
