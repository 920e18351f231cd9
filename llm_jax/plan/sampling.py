"""Bytes on a device while a stage samples the answers that it learns from, by arithmetic."""
from llm_jax.config.model.architecture import Architecture, Attention
from llm_jax.config.model.count import blocks
from llm_jax.config.model.flops import cache_bytes_per_token
from llm_jax.config.stage import Stage

HALF, FULL = 2, 4
LOGITS = 3  # arrays of logits in float32: as they are, divided by the temperature, and with the noise that chooses


def sampling_bytes(model: Architecture, stage: Stage, parameters: float, copies: int, tensor: int) -> float:
  """The copy of the weights that answers are sampled with, their cache, and the logits of one token of each; 0 for a
  stage without a rollout.

  parameters: of the copy, on a device.   copies: over how many devices answers are split.   tensor: and heads.
  """
  rollout = stage.rollout
  if rollout is None:
    return 0.0
  answers = rollout.rows_at_once or stage.batch_size * rollout.minibatches
  rows = answers / copies
  cache = rows * stage.seq_len * cache_bytes_per_token(model) / heads_split(model, tensor)
  logits = LOGITS * rows * model.vocab_size / tensor * FULL
  return parameters * HALF + cache + logits


def heads_split(model: Architecture, tensor: int) -> int:
  """Over how many devices keys and values are split: 1 where they are whole on each."""
  attentions = [block.attention for block in blocks(model)]
  is_split = all(isinstance(each, Attention) and each.kv_heads % tensor == 0 for each in attentions)
  return tensor if is_split else 1
