"""Phi-3 (Abdin et al. 2024, Phi-3 Technical Report, section 2), Phi-3.5, Phi-4 (Abdin et al. 2024, Phi-4 Technical
Report) and Phi-4-mini (Abouelenin et al. 2025), by their released configurations: Llama, stretched by LongRoPE."""
from functools import partial

from llm_jax.config.model.architecture import GLU, Architecture, Attention, Block, LongRoPEScaling, RMSNorm, RoPE
from llm_jax.config.presets.phi3_factors import (
  PHI3_5_MINI_LONG,
  PHI3_5_MINI_SHORT,
  PHI3_MINI_LONG,
  PHI3_MINI_SHORT,
  PHI4_MINI_LONG,
  PHI4_MINI_SHORT,
)


def phi3(d_model: int, num_layers: int, num_heads: int, d_ff: int, num_kv_heads: int | None = None,
         window: int | None = None, scaling: LongRoPEScaling | None = None, rotary_dim: int | None = None,
         vocab_size: int = 32_064, tied_head: bool = False, rope_theta: float = 10_000.0, eps: float = 1e-5,
         head_dim: int | None = None, max_length: int | None = None, dropout: float = 0.0) -> Architecture:
  """Any size.   rotary_dim: how many numbers of a head are turned; None means all.   eps: of the norms."""
  attention = Attention(num_heads, num_kv_heads, head_dim, window=window, rotary_dim=rotary_dim)
  return Architecture(vocab_size, d_model, num_layers, pattern=(Block(attention, GLU(d_ff), RMSNorm(eps)),),
                      positions=RoPE(rope_theta, scaling, max_length), norm=RMSNorm(eps), tied_head=tied_head,
                      dropout=dropout, family='phi3')


# The window of the stretched sizes is wider than any of their sequences.
_MINI = dict(d_model=3_072, num_layers=32, num_heads=32, d_ff=8_192)
_LONG = dict(window=262_144, max_length=131_072)
_14B = dict(d_model=5_120, num_layers=40, num_heads=40, num_kv_heads=10, d_ff=17_920)

phi3_mini_4k   = partial(phi3, **_MINI, window=2_047, max_length=4_096)
phi3_mini_128k = partial(phi3, **_MINI, **_LONG, scaling=LongRoPEScaling(PHI3_MINI_SHORT, PHI3_MINI_LONG, 32.0, 4_096))
phi3_medium_4k = partial(phi3, **_14B, window=2_047, max_length=4_096)
phi3_5_mini    = partial(phi3, **_MINI, **_LONG,
                         scaling=LongRoPEScaling(PHI3_5_MINI_SHORT, PHI3_5_MINI_LONG, 32.0, 4_096))
phi4           = partial(phi3, **_14B, vocab_size=100_352, rope_theta=250_000.0, max_length=16_384)
phi4_mini      = partial(phi3, d_model=3_072, num_layers=32, num_heads=24, num_kv_heads=8, d_ff=8_192, **_LONG,
                         rotary_dim=96, vocab_size=200_064, tied_head=True,
                         scaling=LongRoPEScaling(PHI4_MINI_SHORT, PHI4_MINI_LONG, 32.0, 4_096))
