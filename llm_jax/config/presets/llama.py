"""Llama (Touvron et al. 2023, Dubey et al. 2024): pre-RMSNorm, rotary positions, SwiGLU, grouped-query attention."""
from llm_jax.config.architecture import GLU, Architecture, Attention, Block, RMSNorm, RoPE


def llama(d_model: int, num_layers: int, num_heads: int, num_kv_heads: int | None = None, d_ff: int | None = None,
          vocab_size: int = 32_000, rope_base: float = 10_000.0, tied_head: bool = False,
          head_dim: int | None = None, dropout: float = 0.0) -> Architecture:
  block = Block(Attention(num_heads, num_kv_heads, head_dim), GLU(d_ff), RMSNorm())
  return Architecture(vocab_size, d_model, num_layers, pattern=(block,), positions=RoPE(rope_base), norm=RMSNorm(),
                      tied_head=tied_head, dropout=dropout)


def llama3_8b(**changes) -> Architecture:
  """32 layers, width 4,096, 32 heads of 128 over 8 key/value heads: 8,030,261,248 parameters."""
  return llama(**{'d_model': 4_096, 'num_layers': 32, 'num_heads': 32, 'num_kv_heads': 8, 'd_ff': 14_336,
                  'vocab_size': 128_256, 'rope_base': 500_000.0, **changes})
