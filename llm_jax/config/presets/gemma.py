"""Gemma (Gemma Team 2024, table 1): RMSNorm stored around zero, GeGLU, embeddings scaled by sqrt(width), tied head,
heads of 256; the 2B has a single key/value head."""
import math
from functools import partial

from llm_jax.config.model.architecture import GLU, Architecture, Attention, Block, RoPE, ZeroCenteredRMSNorm


def gemma(d_model: int, num_layers: int, num_heads: int, num_kv_heads: int | None, d_ff: int, head_dim: int = 256,
          vocab_size: int = 256_000, max_length: int | None = None, dropout: float = 0.0) -> Architecture:
  """Any size.   d_ff: of one of GeGLU's two halves; the paper prints their sum."""
  norm = ZeroCenteredRMSNorm()
  block = Block(Attention(num_heads, num_kv_heads, head_dim), GLU(d_ff, 'gelu_tanh'), norm)
  return Architecture(vocab_size, d_model, num_layers, pattern=(block,), positions=RoPE(max_length=max_length),
                      norm=norm, tied_head=True, dropout=dropout, embedding_scale=math.sqrt(d_model))


# The paper counts 256,128 tokens; the released checkpoints hold 256,000.
gemma_2b = partial(gemma, d_model=2_048, num_layers=18, num_heads=8,  num_kv_heads=1,    d_ff=16_384, max_length=8_192)
gemma_7b = partial(gemma, d_model=3_072, num_layers=28, num_heads=16, num_kv_heads=None, d_ff=24_576, max_length=8_192)
