"""Llama: pre-RMSNorm, rotary positions, SwiGLU, no biases; grouped-query attention since Llama 2 70B.

LLaMA (Touvron et al. 2023, table 2), Llama 2 (Touvron et al. 2023b, table 1), Code Llama (Rozière et al. 2023, section
2), Llama 3 and 3.1 (Dubey et al. 2024, table 3), Llama 3.2 and 3.3 (released configurations).
"""
from functools import partial

from llm_jax.config.model.architecture import GLU, Architecture, Attention, Block, Llama3Scaling, RMSNorm, RoPE, Scaling


def llama(d_model: int, num_layers: int, num_heads: int, num_kv_heads: int | None = None, d_ff: int | None = None,
          vocab_size: int = 32_000, rope_theta: float = 10_000.0, tied_head: bool = False,
          head_dim: int | None = None, dropout: float = 0.0, eps: float = 1e-5, scaling: Scaling | None = None,
          max_length: int | None = None) -> Architecture:
  """Any size.   eps: of the norms.   scaling, max_length: see `RoPE`."""
  block = Block(Attention(num_heads, num_kv_heads, head_dim), GLU(d_ff), RMSNorm(eps))
  return Architecture(vocab_size, d_model, num_layers, pattern=(block,),
                      positions=RoPE(rope_theta, scaling, max_length), norm=RMSNorm(eps), tied_head=tied_head,
                      dropout=dropout)


_7B = dict(d_model=4_096, num_layers=32, num_heads=32, d_ff=11_008)
_8B = dict(d_model=4_096, num_layers=32, num_heads=32, num_kv_heads=8, d_ff=14_336)
_13B = dict(d_model=5_120, num_layers=40, num_heads=40, d_ff=13_824)
_33B = dict(d_model=6_656, num_layers=60, num_heads=52, d_ff=17_920)
_34B = dict(d_model=8_192, num_layers=48, num_heads=64, num_kv_heads=8, d_ff=22_016)
_65B = dict(d_model=8_192, num_layers=80, num_heads=64, d_ff=22_016)
_70B = dict(d_model=8_192, num_layers=80, num_heads=64, num_kv_heads=8, d_ff=28_672)

# LLaMA. Paper: 6.7B, 13.0B, 32.5B, 65.2B (the last is 65.29B, cut).
llama_7b  = partial(llama, **_7B,  max_length=2_048, eps=1e-6)
llama_13b = partial(llama, **_13B, max_length=2_048, eps=1e-6)
llama_33b = partial(llama, **_33B, max_length=2_048, eps=1e-6)
llama_65b = partial(llama, **_65B, max_length=2_048)

# Llama 2. The 34B was trained and never released; its sizes are those of Code Llama 34B, which was trained from it.
llama2_7b  = partial(llama, **_7B,  max_length=4_096)
llama2_13b = partial(llama, **_13B, max_length=4_096)
llama2_34b = partial(llama, **_34B, max_length=4_096)
llama2_70b = partial(llama, **_70B, max_length=4_096)

# Code Llama: Llama 2 trained on, with another rotary theta and, where it fills gaps in code, 16 more tokens.
code_llama_7b  = partial(llama, **_7B,  rope_theta=1e6, max_length=16_384, vocab_size=32_016)
code_llama_13b = partial(llama, **_13B, rope_theta=1e6, max_length=16_384, vocab_size=32_016)
code_llama_34b = partial(llama, **_34B, rope_theta=1e6, max_length=16_384)
code_llama_70b = partial(llama, **_70B, rope_theta=1e6, max_length=16_384, vocab_size=32_016)

# Llama 3: 128,256 tokens, grouped queries in every size. From 3.1 on, wavelengths are stretched for 131,072 tokens.
_3 = dict(vocab_size=128_256, rope_theta=500_000.0)
_3_1 = dict(_3, scaling=Llama3Scaling(factor=8.0), max_length=131_072)
_3_2 = dict(_3, scaling=Llama3Scaling(factor=32.0), max_length=131_072, tied_head=True, num_kv_heads=8, d_ff=8_192)

llama3_8b     = partial(llama, **_8B,  **_3, max_length=8_192)
llama3_70b    = partial(llama, **_70B, **_3, max_length=8_192)
llama3_1_8b   = partial(llama, **_8B,  **_3_1)
llama3_1_70b  = partial(llama, **_70B, **_3_1)
llama3_1_405b = partial(llama, d_model=16_384, num_layers=126, num_heads=128, num_kv_heads=8, d_ff=53_248, **_3_1)
llama3_2_1b   = partial(llama, d_model=2_048, num_layers=16, num_heads=32, **_3_2)
llama3_2_3b   = partial(llama, d_model=3_072, num_layers=28, num_heads=24, **_3_2)
llama3_3_70b  = llama3_1_70b  # the same architecture, trained further
