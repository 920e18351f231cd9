"""GPT-NeoX-20B (Black et al. 2022, table 1 and section 2.1) and Pythia (Biderman et al. 2023, table 1): attention and
feed-forward beside each other, rotary positions that turn a quarter of each head, biases everywhere."""
import math
from functools import partial

from llm_jax.config.model.architecture import (
  MLP,
  Architecture,
  Attention,
  LayerNorm,
  NormalInit,
  ParallelBlock,
  RoPE,
)


def gpt_neox(d_model: int, num_layers: int, num_heads: int, d_ff: int | None = None, rotary_dim: int | None = None,
             vocab_size: int = 50_304, activation: str = 'gelu', rope_theta: float = 10_000.0,
             max_length: int | None = None, dropout: float = 0.0) -> Architecture:
  """Any size.

  d_ff: None means 4 d_model.
  rotary_dim: how much of a head is turned; None means a quarter.
  vocab_size: the tokenizer has 50,277 tokens; the released tables are longer, each a multiple of 128 that its
    devices divided.

  The initialisation is theirs (GPT-NeoX, section 2.1.3): std sqrt(2 / (5 d_model)), and 2 / (num_layers sqrt(d_model))
  of the projections to the residual stream.
  """
  rotary_dim = d_model // num_heads // 4 if rotary_dim is None else rotary_dim
  attention = Attention(num_heads, bias=True, rotary_dim=rotary_dim)
  block = ParallelBlock(attention, MLP(d_ff, activation, bias=True), LayerNorm())
  init = NormalInit(math.sqrt(2 / (5 * d_model)), 2 / (num_layers * math.sqrt(d_model)))
  return Architecture(vocab_size, d_model, num_layers, pattern=(block,), positions=RoPE(rope_theta, None, max_length),
                      norm=LayerNorm(), tied_head=False, dropout=dropout, init=init)


_PYTHIA = dict(max_length=2_048)

pythia_70m  = partial(gpt_neox, d_model=512,   num_layers=6,  num_heads=8,  **_PYTHIA)
pythia_160m = partial(gpt_neox, d_model=768,   num_layers=12, num_heads=12, **_PYTHIA)
pythia_410m = partial(gpt_neox, d_model=1_024, num_layers=24, num_heads=16, **_PYTHIA)
pythia_1b   = partial(gpt_neox, d_model=2_048, num_layers=16, num_heads=8,  **_PYTHIA)
pythia_1_4b = partial(gpt_neox, d_model=2_048, num_layers=24, num_heads=16, **_PYTHIA)
pythia_2_8b = partial(gpt_neox, d_model=2_560, num_layers=32, num_heads=32, **_PYTHIA)
pythia_6_9b = partial(gpt_neox, d_model=4_096, num_layers=32, num_heads=32, vocab_size=50_432, **_PYTHIA)
pythia_12b  = partial(gpt_neox, d_model=5_120, num_layers=36, num_heads=40, vocab_size=50_688, **_PYTHIA)

# Its file says "gelu_fast", the form by tanh; those of Pythia say "gelu".
gpt_neox_20b = partial(gpt_neox, d_model=6_144, num_layers=44, num_heads=64, vocab_size=50_432,
                       activation='gelu_tanh', max_length=2_048)
