"""Qwen2 (and 2.5), whose queries, keys and values have biases, and Qwen3, which normalises queries and keys instead."""
from typing import Any

from llm_jax.config.model.architecture import GLU, Architecture, Attention, Block, NormalInit, RMSNorm
from llm_jax.config.model.attention import PerHeadNorm
from llm_jax.hf.families.llama import LLAMA
from llm_jax.hf.fields import ACTIVATION_NAMES, Fields
from llm_jax.hf.parts import (
  arrange,
  expect_kind,
  first_block,
  has_norms_per_head,
  read_attention,
  read_windows,
  windowed,
  write_attention,
  write_windows,
)
from llm_jax.hf.rope import read_rope


def read_qwen2(fields: Fields) -> Architecture:
  d_model = fields.size('hidden_size', 4_096)
  attention = read_attention(fields, d_model, heads=32, kv_heads=32, bias=True, out_bias=False)
  return _read(fields, d_model, attention)


def read_qwen3(fields: Fields) -> Architecture:
  d_model = fields.size('hidden_size', 4_096)
  norm = RMSNorm(fields.number('rms_norm_eps', 1e-6))
  attention = read_attention(fields, d_model, heads=32, kv_heads=32, head_dim=128,
                             bias=fields.flag('attention_bias', False), qk_norm=PerHeadNorm(norm))
  return _read(fields, d_model, attention)


def _read(fields: Fields, d_model: int, attention: Attention) -> Architecture:
  norm = RMSNorm(fields.number('rms_norm_eps', 1e-6))
  feed_forward = GLU(fields.size('intermediate_size', 22_016), fields.activation('hidden_act', 'silu'))
  num_layers = fields.size('num_hidden_layers', 32)
  windows = _read_windows(fields, num_layers)
  prefix, pattern = arrange([Block(windowed(attention, window), feed_forward, norm) for window in windows])
  return Architecture(
    vocab_size=fields.size('vocab_size', 151_936), d_model=d_model, num_layers=num_layers, prefix=prefix,
    pattern=pattern, positions=read_rope(fields)[0], norm=norm, tied_head=fields.flag('tie_word_embeddings', False),
    init=NormalInit(fields.number('initializer_range', 0.02)))


def _read_windows(fields: Fields, num_layers: int) -> list[int | None]:
  """Of each layer. Only files that say `use_sliding_window` have some, from layer `max_window_layers` on."""
  window = fields.optional_size('sliding_window', 4_096)
  first = fields.count('max_window_layers', 28)
  if not fields.flag('use_sliding_window', False):
    window = None
  has_window = lambda layer: window is not None and layer >= first
  return read_windows(fields, num_layers, window, has_window)


def write_qwen2(config: Architecture) -> dict[str, Any]:
  block = expect_kind(config.pattern[0], Block, 'pattern[0]')
  attention = expect_kind(block.attention, Attention, 'pattern[0].attention')
  feed_forward = expect_kind(block.feed_forward, GLU, 'pattern[0].feed_forward')
  windows = write_windows(config, usual=4_096)
  uses_window = 'sliding_attention' in windows['layer_types']
  return write_attention(config, attention) | windows | {
    'intermediate_size': feed_forward.width(config.d_model), 'hidden_act': ACTIVATION_NAMES[feed_forward.activation],
    'rms_norm_eps': block.norm.eps, 'use_sliding_window': uses_window, 'max_window_layers': config.num_layers}


def write_qwen3(config: Architecture) -> dict[str, Any]:
  attention = expect_kind(first_block(config).attention, Attention, 'pattern[0].attention')
  return write_qwen2(config) | {'attention_bias': attention.bias}


def has_biases_but_of_the_output(config: Architecture) -> bool:
  attention = first_block(config).attention
  return isinstance(attention, Attention) and attention.bias and not attention.has_out_bias


QWEN2 = LLAMA._replace(
  model_type='qwen2', architecture='Qwen2ForCausalLM', read=read_qwen2, write=write_qwen2,
  resembles=has_biases_but_of_the_output)
QWEN3 = LLAMA._replace(
  model_type='qwen3', architecture='Qwen3ForCausalLM', read=read_qwen3, write=write_qwen3,
  resembles=has_norms_per_head)
