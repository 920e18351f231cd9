"""Mistral 7B (Jiang et al. 2023, table 1): Llama with grouped queries and a sliding window."""
from functools import partial

from llm_jax.config.model.architecture import GLU, Architecture, Attention, Block, RMSNorm, RoPE


def mistral(d_model: int, num_layers: int, num_heads: int, num_kv_heads: int, d_ff: int, window: int | None = 4_096,
            vocab_size: int = 32_000, rope_theta: float = 10_000.0, head_dim: int | None = None,
            max_length: int | None = None, dropout: float = 0.0) -> Architecture:
  """Any size.   window: how many tokens a query sees, itself included; None means all (version 0.2 and later)."""
  block = Block(Attention(num_heads, num_kv_heads, head_dim, window=window), GLU(d_ff), RMSNorm())
  return Architecture(vocab_size, d_model, num_layers, pattern=(block,),
                      positions=RoPE(rope_theta, max_length=max_length), norm=RMSNorm(), tied_head=False,
                      dropout=dropout, family='mistral')


# The paper's table says context 8,192; the released configuration 32,768, which the window allows.
mistral_7b = partial(mistral, d_model=4_096, num_layers=32, num_heads=32, num_kv_heads=8, d_ff=14_336, window=4_096,
                     max_length=32_768)
