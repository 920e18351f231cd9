"""OLMo 2 and 3: norms on what attention and feed-forward add, and on queries and keys over all heads. Layers of OLMo 3
with a window keep the plain rotation where the others stretch it."""
import dataclasses
from typing import Any

from llm_jax.config.model.architecture import GLU, Architecture, Attention, NormalInit, OutputNormBlock, RMSNorm, RoPE
from llm_jax.config.model.attention import FullWidthNorm
from llm_jax.config.model.count import blocks
from llm_jax.hf.families.llama import BUFFERS
from llm_jax.hf.family import Family
from llm_jax.hf.fields import ACTIVATION_NAMES, Fields
from llm_jax.hf.parts import (
  ATTENTION,
  GATED,
  MODEL,
  arrange,
  expect_kind,
  first_block,
  read_attention,
  read_windows,
  windowed,
  write_attention,
  write_windows,
)
from llm_jax.hf.rope import read_rope, read_ropes_by_layer, write_ropes_by_layer


def read_olmo2(fields: Fields) -> Architecture:
  block = _read_block(fields)
  return _read(fields, read_rope(fields)[0], [block] * fields.size('num_hidden_layers', 32))


def read_olmo3(fields: Fields) -> Architecture:
  block = _read_block(fields)
  attention = expect_kind(block.attention, Attention, 'pattern[0].attention')
  num_layers = fields.size('num_hidden_layers', 32)
  windows = read_windows(fields, num_layers, fields.optional_size('sliding_window', 4_096),
                         lambda layer: (layer + 1) % 4 != 0)
  ropes = read_ropes_by_layer(fields, theta=500_000.0, local_theta=500_000.0)
  layers = [dataclasses.replace(block, attention=windowed(attention, window, ropes.local if window else None))
            for window in windows]
  return _read(fields, ropes.everywhere, layers)


def _read_block(fields: Fields) -> OutputNormBlock:
  norm = RMSNorm(fields.number('rms_norm_eps', 1e-5))
  attention = read_attention(fields, fields.size('hidden_size', 4_096), heads=32, kv_heads=None,
                             bias=fields.flag('attention_bias', False), qk_norm=FullWidthNorm(norm))
  feed_forward = GLU(fields.size('intermediate_size', 11_008), fields.activation('hidden_act', 'silu'))
  return OutputNormBlock(attention, feed_forward, norm)


def _read(fields: Fields, positions: RoPE, layers: list[OutputNormBlock]) -> Architecture:
  prefix, pattern = arrange(layers)
  return Architecture(
    vocab_size=fields.size('vocab_size', 50_304), d_model=fields.size('hidden_size', 4_096), num_layers=len(layers),
    prefix=prefix, pattern=pattern, positions=positions, norm=layers[0].norm,
    tied_head=fields.flag('tie_word_embeddings', False), init=NormalInit(fields.number('initializer_range', 0.02)))


def write_olmo2(config: Architecture) -> dict[str, Any]:
  block = expect_kind(first_block(config), OutputNormBlock, 'pattern[0]')
  attention = expect_kind(block.attention, Attention, 'pattern[0].attention')
  feed_forward = expect_kind(block.feed_forward, GLU, 'pattern[0].feed_forward')
  return write_attention(config, attention) | {
    'attention_bias': attention.bias, 'intermediate_size': feed_forward.width(config.d_model),
    'hidden_act': ACTIVATION_NAMES[feed_forward.activation], 'rms_norm_eps': block.norm.eps}


def write_olmo3(config: Architecture) -> dict[str, Any]:
  return write_olmo2(config) | write_windows(config, usual=4_096) | write_ropes_by_layer(config)


def has_output_norms(config: Architecture) -> bool:
  return isinstance(first_block(config), OutputNormBlock)


def has_output_norms_and_windows(config: Architecture) -> bool:
  attentions = [block.attention for block in blocks(config)]
  has_window = any(isinstance(attention, Attention) and attention.window for attention in attentions)
  return has_output_norms(config) and has_window


OLMO2 = Family(
  'olmo2', 'Olmo2ForCausalLM', read_olmo2, write_olmo2, MODEL, base_model_prefix='model.', ignored=BUFFERS,
  resembles=has_output_norms,
  layer=(
    *ATTENTION,
    ('attention_out_norm/scale',    'model.layers.{N}.post_attention_layernorm.weight',    'D'),
    *GATED,
    ('feed_forward_out_norm/scale', 'model.layers.{N}.post_feedforward_layernorm.weight',  'D'),
  ))
OLMO3 = OLMO2._replace(
  model_type='olmo3', architecture='Olmo3ForCausalLM', read=read_olmo3, write=write_olmo3,
  resembles=has_output_norms_and_windows)
