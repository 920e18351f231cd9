"""GPT-3 (Brown et al. 2020, Language Models are Few-Shot Learners, table 2.1): GPT-2 with layers alternating between
dense and locally banded attention, and twice the context."""
import dataclasses
from functools import partial

from llm_jax.config.model.architecture import MLP, Architecture, Attention, Block, LayerNorm, LearnedPositions


def gpt3(d_model: int, num_layers: int, num_heads: int, window: int = 256, vocab_size: int = 50_257,
         max_length: int = 2_048, dropout: float = 0.0) -> Architecture:
  """Any size with an even number of layers: dense, banded, dense, banded, ...

  window: the band's width. The paper prints none; 256 is that of GPT-Neo, its public replication, and so is the order.
  """
  dense = Block(Attention(num_heads, bias=True), MLP(activation='gelu_tanh', bias=True), LayerNorm())
  banded = dataclasses.replace(dense, attention=dataclasses.replace(dense.attention, window=window))
  return Architecture(vocab_size, d_model, num_layers, pattern=(dense, banded), positions=LearnedPositions(max_length),
                      norm=LayerNorm(), tied_head=True, dropout=dropout)


# Two numbers of the printed table are misprints, as its own counts show (table D.1: 1,320M and 12,850M):
#   XL has 24 heads of 128 there, which is 3,072 and not its width of 2,048: 16 heads give 1,320M, 24 would give 1.5B.
#   13B has width 5,140 there, which is not 40 heads of 128: 5,120 gives 12,850M, 5,140 would give 12,950M.
gpt3_125m = partial(gpt3, d_model=768,    num_layers=12, num_heads=12)  # heads of  64
gpt3_350m = partial(gpt3, d_model=1_024,  num_layers=24, num_heads=16)  #           64
gpt3_760m = partial(gpt3, d_model=1_536,  num_layers=24, num_heads=16)  #           96
gpt3_1_3b = partial(gpt3, d_model=2_048,  num_layers=24, num_heads=16)  #          128
gpt3_2_7b = partial(gpt3, d_model=2_560,  num_layers=32, num_heads=32)  #           80
gpt3_6_7b = partial(gpt3, d_model=4_096,  num_layers=32, num_heads=32)  #          128
gpt3_13b  = partial(gpt3, d_model=5_120,  num_layers=40, num_heads=40)  #          128
gpt3_175b = partial(gpt3, d_model=12_288, num_layers=96, num_heads=96)  #          128
