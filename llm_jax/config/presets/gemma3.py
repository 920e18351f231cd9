"""Gemma 3 (Gemma Team 2025, table 1 and section 2): five layers with a window for one that sees all tokens, each kind
with rotary positions of its own, and norms of queries and keys in place of soft caps. The text decoder alone."""
import dataclasses
import math
from functools import partial

from llm_jax.config.model.architecture import (
  GLU,
  Architecture,
  Attention,
  LinearScaling,
  RoPE,
  SandwichBlock,
  Scaling,
  ZeroCenteredRMSNorm,
)
from llm_jax.config.model.attention import PerHeadNorm

PERIOD = 6  # five local layers, then a global one


def gemma3(d_model: int, num_layers: int, num_heads: int, num_kv_heads: int, d_ff: int, head_dim: int = 256,
           query_size: float | None = None, window: int = 1_024, rope_theta: float = 1e6,
           local_theta: float = 10_000.0, scaling: Scaling | None = None, vocab_size: int = 262_144,
           max_length: int | None = None, dropout: float = 0.0) -> Architecture:
  """Any size; the layers need not be a multiple of six.

  d_ff: of one of GeGLU's two halves.
  query_size: scores are divided by its root (`query_pre_attn_scalar`); None means head_dim.
  rope_theta, scaling: of the global layers.   local_theta: of the local ones.
  """
  norm = ZeroCenteredRMSNorm()
  everywhere = Attention(num_heads, num_kv_heads, head_dim, qk_norm=PerHeadNorm(norm),
                         scale=None if query_size is None else 1 / math.sqrt(query_size))
  local = dataclasses.replace(everywhere, window=window, positions=RoPE(local_theta))
  attentions = [everywhere if (i + 1) % PERIOD == 0 else local for i in range(2 * PERIOD)]
  layers = [SandwichBlock(attention, GLU(d_ff, 'gelu_tanh'), norm) for attention in attentions]
  rest = num_layers % PERIOD  # layers of the first period that come before the pattern
  return Architecture(vocab_size, d_model, num_layers, prefix=tuple(layers[:rest]),
                      pattern=tuple(layers[rest:rest + PERIOD]), positions=RoPE(rope_theta, scaling, max_length),
                      norm=norm, tied_head=True, dropout=dropout, embedding_scale=math.sqrt(d_model))


_LONG = dict(scaling=LinearScaling(8.0), max_length=131_072)

gemma3_1b  = partial(gemma3, d_model=1_152, num_layers=26, num_heads=4,  num_kv_heads=1,  d_ff=6_912, window=512,
                     max_length=32_768)
gemma3_4b  = partial(gemma3, d_model=2_560, num_layers=34, num_heads=8,  num_kv_heads=4,  d_ff=10_240, **_LONG)
gemma3_12b = partial(gemma3, d_model=3_840, num_layers=48, num_heads=16, num_kv_heads=8,  d_ff=15_360, **_LONG)
# The 27B alone scales by its width over its heads, 168, and not by its heads of 128.
gemma3_27b = partial(gemma3, d_model=5_376, num_layers=62, num_heads=32, num_kv_heads=16, d_ff=21_504, head_dim=128,
                     query_size=168, **_LONG)
