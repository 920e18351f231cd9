"""SmolLM3 (Hugging Face 2025; released configuration): Llama whose every fourth layer has no positions."""
import dataclasses
from functools import partial

from llm_jax.config.model.architecture import GLU, Architecture, Attention, Block, NoPositions, RMSNorm, RoPE


def smollm3(d_model: int, num_layers: int, num_heads: int, num_kv_heads: int, d_ff: int, vocab_size: int = 128_256,
            rope_theta: float = 5e6, head_dim: int | None = None, max_length: int | None = None,
            dropout: float = 0.0) -> Architecture:
  """Any size with a multiple of four layers."""
  norm = RMSNorm(1e-6)
  rotary = Attention(num_heads, num_kv_heads, head_dim)
  plain = dataclasses.replace(rotary, positions=NoPositions())
  pattern = tuple(Block(attention, GLU(d_ff), norm) for attention in (rotary, rotary, rotary, plain))
  return Architecture(vocab_size, d_model, num_layers, pattern=pattern,
                      positions=RoPE(rope_theta, None, max_length), norm=norm, tied_head=True, dropout=dropout)


smollm3_3b = partial(smollm3, d_model=2_048, num_layers=36, num_heads=16, num_kv_heads=4, d_ff=11_008,
                     max_length=65_536)
