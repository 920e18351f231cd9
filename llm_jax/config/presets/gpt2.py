"""GPT-2 (Radford et al. 2019, Language Models are Unsupervised Multitask Learners, table 2): LayerNorm moves in front
of attention and feed-forward, one more stands before the head; learned positions, GELU, biases, tied head."""
from functools import partial

from llm_jax.config.model.architecture import MLP, Architecture, Attention, Block, LayerNorm, LearnedPositions


def gpt2(d_model: int, num_layers: int, num_heads: int, vocab_size: int = 50_257, max_length: int = 1_024,
         dropout: float = 0.0) -> Architecture:
  """Any size. The released configurations have dropout 0.1."""
  block = Block(Attention(num_heads, bias=True), MLP(activation='gelu_tanh', bias=True), LayerNorm())
  return Architecture(vocab_size, d_model, num_layers, pattern=(block,), positions=LearnedPositions(max_length),
                      norm=LayerNorm(), tied_head=True, dropout=dropout)


# The paper prints 117M, 345M, 762M and 1542M, which its authors corrected to these in the released code.
gpt2_124m = partial(gpt2, d_model=768,   num_layers=12, num_heads=12)
gpt2_355m = partial(gpt2, d_model=1_024, num_layers=24, num_heads=16)
gpt2_774m = partial(gpt2, d_model=1_280, num_layers=36, num_heads=20)
gpt2_1_5b = partial(gpt2, d_model=1_600, num_layers=48, num_heads=25)
