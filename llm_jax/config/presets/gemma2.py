"""Gemma 2 (Gemma Team 2024b, table 1): Gemma with layers alternating between a local window and all tokens, norms
before and after attention and feed-forward, soft-capped scores and logits, grouped queries."""
import dataclasses
import math
from functools import partial

from llm_jax.config.model.architecture import GLU, Architecture, Attention, RoPE, SandwichBlock, ZeroCenteredRMSNorm


def gemma2(d_model: int, num_layers: int, num_heads: int, num_kv_heads: int, d_ff: int, head_dim: int = 256,
           query_size: float | None = None, window: int = 4_096, attention_soft_cap: float = 50.0,
           logit_soft_cap: float = 30.0, vocab_size: int = 256_000, max_length: int | None = None,
           dropout: float = 0.0) -> Architecture:
  """Any size with an even number of layers: local, global, local, global, ...

  d_ff: of one of GeGLU's two halves; the paper prints their sum.
  query_size: scores are divided by its root (`query_pre_attn_scalar`); None means head_dim.
  """
  norm = ZeroCenteredRMSNorm()
  everywhere = Attention(num_heads, num_kv_heads, head_dim, soft_cap=attention_soft_cap,
                         scale=None if query_size is None else 1 / math.sqrt(query_size))
  local = dataclasses.replace(everywhere, window=window)
  pattern = tuple(SandwichBlock(attention, GLU(d_ff, 'gelu_tanh'), norm) for attention in (local, everywhere))
  return Architecture(vocab_size, d_model, num_layers, pattern=pattern, positions=RoPE(max_length=max_length),
                      norm=norm, tied_head=True, dropout=dropout, embedding_scale=math.sqrt(d_model),
                      logit_soft_cap=logit_soft_cap)


gemma2_2b  = partial(gemma2, d_model=2_304, num_layers=26, num_heads=8,  num_kv_heads=4,  d_ff=9_216,
                     max_length=8_192)
gemma2_9b  = partial(gemma2, d_model=3_584, num_layers=42, num_heads=16, num_kv_heads=8,  d_ff=14_336,
                     max_length=8_192)
# The 27B alone scales by its width over its heads, 144, and not by its heads of 128.
gemma2_27b = partial(gemma2, d_model=4_608, num_layers=46, num_heads=32, num_kv_heads=16, d_ff=36_864, head_dim=128,
                     query_size=144, max_length=8_192)
