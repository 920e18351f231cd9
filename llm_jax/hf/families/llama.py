"""Llama, and Mistral: Llama whose attention may see a window."""
import dataclasses
import re
from typing import Any

from llm_jax.config.model.architecture import GLU, Architecture, Attention, Block, Norm, NormalInit, RMSNorm, RoPE
from llm_jax.hf.family import Family
from llm_jax.hf.fields import ACTIVATION_NAMES, Fields
from llm_jax.hf.parts import (
  ATTENTION,
  FEED_FORWARD_NORM,
  GATED,
  MODEL,
  expect_kind,
  first_block,
  read_attention,
  write_attention,
)
from llm_jax.hf.rope import read_rope

BUFFERS = re.compile(r'\.rotary_emb\.inv_freq$')


def read_llama(fields: Fields) -> Architecture:
  d_model = fields.size('hidden_size', 4_096)
  attention = read_attention(fields, d_model, heads=32, kv_heads=None, bias=fields.flag('attention_bias', False))
  feed_forward = GLU(fields.size('intermediate_size', 11_008), fields.activation('hidden_act', 'silu'),
                     bias=fields.flag('mlp_bias', False))
  return _read(fields, d_model, attention, feed_forward)


def read_mistral(fields: Fields) -> Architecture:
  d_model = fields.size('hidden_size', 4_096)
  attention = read_attention(fields, d_model, heads=32, kv_heads=8,
                             window=fields.optional_size('sliding_window', 4_096))
  feed_forward = GLU(fields.size('intermediate_size', 14_336), fields.activation('hidden_act', 'silu'))
  return dataclasses.replace(_read(fields, d_model, attention, feed_forward), family='mistral')


def _read(fields: Fields, d_model: int, attention: Attention, feed_forward: GLU) -> Architecture:
  norm = RMSNorm(fields.number('rms_norm_eps', 1e-6))
  return Architecture(
    vocab_size=fields.size('vocab_size', 32_000), d_model=d_model, num_layers=fields.size('num_hidden_layers', 32),
    pattern=(Block(attention, feed_forward, norm),), positions=read_rope(fields)[0], norm=norm,
    tied_head=fields.flag('tie_word_embeddings', False), init=NormalInit(fields.number('initializer_range', 0.02)))


def write_llama(config: Architecture) -> dict[str, Any]:
  block = expect_kind(config.pattern[0], Block, 'pattern[0]')
  feed_forward = expect_kind(block.feed_forward, GLU, 'pattern[0].feed_forward')
  attention = expect_kind(block.attention, Attention, 'pattern[0].attention')
  return _write(config, attention, feed_forward, block.norm) | {
    'attention_bias': attention.bias, 'mlp_bias': feed_forward.bias}


def write_mistral(config: Architecture) -> dict[str, Any]:
  block = expect_kind(config.pattern[0], Block, 'pattern[0]')
  feed_forward = expect_kind(block.feed_forward, GLU, 'pattern[0].feed_forward')
  attention = expect_kind(block.attention, Attention, 'pattern[0].attention')
  return _write(config, attention, feed_forward, block.norm) | {'sliding_window': attention.window}


def _write(config: Architecture, attention: Attention, feed_forward: GLU, norm: Norm) -> dict[str, Any]:
  expect_kind(config.positions, RoPE, 'positions')
  return write_attention(config, attention) | {
    'intermediate_size': feed_forward.width(config.d_model), 'hidden_act': ACTIVATION_NAMES[feed_forward.activation],
    'rms_norm_eps': norm.eps}


def is_mistral(config: Architecture) -> bool:
  """Whether it has Mistral's window; or came as a Mistral, whose newer models have none, and has no bias of a Llama."""
  attention = first_block(config).attention
  if not isinstance(attention, Attention):
    return False
  return attention.window is not None or config.family == 'mistral' and not attention.bias


LLAMA = Family(
  'llama', 'LlamaForCausalLM', read_llama, write_llama, MODEL, (*ATTENTION, *FEED_FORWARD_NORM, *GATED),
  resembles=lambda config: True, base_model_prefix='model.', ignored=BUFFERS)
MISTRAL = LLAMA._replace(
  model_type='mistral', architecture='MistralForCausalLM', read=read_mistral, write=write_mistral,
  resembles=is_mistral)
