"""GPT-2 (Radford et al. 2019): pre-LayerNorm, learned positions, GELU, biases, tied head."""
from llm_jax.config.architecture import MLP, Architecture, Attention, Block, LayerNorm, LearnedPositions


def gpt2(d_model: int, num_layers: int, num_heads: int, vocab_size: int = 50_257, max_length: int = 1_024,
         dropout: float = 0.0) -> Architecture:
  block = Block(Attention(num_heads, bias=True), MLP(activation='gelu_tanh', bias=True), LayerNorm())
  return Architecture(vocab_size, d_model, num_layers, pattern=(block,), positions=LearnedPositions(max_length),
                      norm=LayerNorm(), tied_head=True, dropout=dropout)


def gpt2_124m(**changes) -> Architecture:
  """12 layers, width 768, 12 heads: 124,439,808 parameters."""
  return gpt2(**{'d_model': 768, 'num_layers': 12, 'num_heads': 12, **changes})
