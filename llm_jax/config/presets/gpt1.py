"""GPT-1 (Radford et al. 2018, Improving Language Understanding by Generative Pre-Training, section 4.1): the decoder
of Vaswani et al. 2017, LayerNorm after each sum, with learned positions and GELU."""
from functools import partial

from llm_jax.config.model.architecture import (
  MLP,
  Architecture,
  Attention,
  LayerNorm,
  LearnedPositions,
  NormalInit,
  PostNormBlock,
)

# Every weight starts from N(0, 0.02), positions and the writers to the residual stream too.
INIT = NormalInit(std=0.02, residual_std=0.02, positions_std=0.02)


def gpt1(d_model: int, num_layers: int, num_heads: int, vocab_size: int = 40_478, max_length: int = 512,
         dropout: float = 0.1) -> Architecture:
  """Any size. GELU is the tanh approximation, as in the released code; dropout 0.1 is the paper's."""
  block = PostNormBlock(Attention(num_heads, bias=True), MLP(activation='gelu_tanh', bias=True), LayerNorm())
  return Architecture(vocab_size, d_model, num_layers, pattern=(block,), positions=LearnedPositions(max_length),
                      norm=None, tied_head=True, dropout=dropout, init=INIT)


gpt1_117m = partial(gpt1, d_model=768, num_layers=12, num_heads=12)
