"""Parameter counts by arithmetic over an `Architecture`: what the modules will make, known before anything is made."""
from llm_jax.config.architecture import (
  GLU,
  Architecture,
  Attention,
  Block,
  FeedForward,
  LayerNorm,
  LearnedPositions,
  Norm,
)


def count_parameters(architecture: Architecture) -> int:
  """All parameters, embeddings included; a tied head counts once.

  GPT-2 124M gives 124,439,808 and Llama-3 8B 8,030,261,248, as their published checkpoints hold.
  """
  d_model = architecture.d_model
  total = architecture.vocab_size * d_model * (1 if architecture.tied_head else 2)
  total += count_positions(architecture) + _norm(architecture.norm, d_model)
  return total + sum(_block(block, d_model) for block in blocks(architecture))


def count_matmul_parameters(architecture: Architecture) -> int:
  """Parameters that multiply every token: all but the look-up tables (learned positions; the embedding, unless it is
  also the head). Norms and biases stay in, far below 1 %."""
  untied_table = 0 if architecture.tied_head else architecture.vocab_size * architecture.d_model
  return count_parameters(architecture) - count_positions(architecture) - untied_table


def count_positions(architecture: Architecture) -> int:
  positions = architecture.positions
  return positions.max_length * architecture.d_model if isinstance(positions, LearnedPositions) else 0


def blocks(architecture: Architecture) -> tuple[Block, ...]:
  """Every block in the order that it runs: `num_layers` of them."""
  return architecture.prefix + architecture.pattern * architecture.repeats


def _norm(norm: Norm, d_model: int) -> int:
  return d_model * (2 if isinstance(norm, LayerNorm) else 1)


def _block(block: Block, d_model: int) -> int:
  norms = 2 * _norm(block.norm, d_model)
  return norms + _attention(block.attention, d_model) + _feed_forward(block.feed_forward, d_model)


def _attention(attention: Attention, d_model: int) -> int:
  query = attention.num_heads * attention.head_size(d_model)
  key_value = 2 * attention.kv_heads * attention.head_size(d_model)
  return d_model * (2 * query + key_value) + (query + key_value + d_model if attention.bias else 0)


def _feed_forward(feed_forward: FeedForward, d_model: int) -> int:
  width = feed_forward.width(d_model)
  inward = 2 if isinstance(feed_forward, GLU) else 1
  return (inward + 1) * d_model * width + (inward * width + d_model if feed_forward.bias else 0)
