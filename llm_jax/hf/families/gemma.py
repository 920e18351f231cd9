"""Gemma, Gemma 2 and Gemma 3: embeddings times sqrt(d_model), norms whose scale is stored as its difference from 1,
GeGLU.

Gemma 2 norms what each half of a block adds, caps scores and logits, and alternates windows with full attention.
Gemma 3 normalises queries and keys in place of the caps, and turns them otherwise in layers with a window.
"""
import dataclasses
from typing import Any

from llm_jax.config.errors import require
from llm_jax.config.model.architecture import (
  GLU,
  Architecture,
  Attention,
  Block,
  NormalInit,
  RoPE,
  SandwichBlock,
  ZeroCenteredRMSNorm,
)
from llm_jax.config.model.attention import PerHeadNorm
from llm_jax.config.model.count import blocks
from llm_jax.hf.families.llama import BUFFERS, LLAMA
from llm_jax.hf.family import Family
from llm_jax.hf.fields import ACTIVATION_NAMES, Fields
from llm_jax.hf.parts import (
  ATTENTION,
  GATED,
  MODEL,
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
from llm_jax.hf.rope import read_rope, read_ropes_by_layer, write_ropes_by_layer


# ------------------------------------------------------------------------------------------------ Gemma
def read_gemma(fields: Fields) -> Architecture:
  d_model = fields.size('hidden_size', 3_072)
  attention = read_attention(fields, d_model, heads=16, kv_heads=16, head_dim=256,
                             bias=fields.flag('attention_bias', False))
  # Their first files say "gelu" and mean its approximation by tanh; the next ones said so in a second field, which
  # version 4 of transformers follows and version 5 does not read.
  activation = fields.get('hidden_act', 'gelu_pytorch_tanh')
  activation = 'gelu_tanh' if activation == 'gelu' else fields.activation('hidden_act', 'gelu_pytorch_tanh')
  if fields.values.get('hidden_activation'):
    require(fields.activation('hidden_activation', 'gelu_pytorch_tanh') == activation, 'hidden_activation',
            fields.values['hidden_activation'],
            f'hidden_act is {fields.values.get("hidden_act")!r}, which means {activation}: say the same')
  feed_forward = GLU(fields.size('intermediate_size', 24_576), activation)
  norm = ZeroCenteredRMSNorm(fields.number('rms_norm_eps', 1e-6))
  return Architecture(
    num_layers=fields.size('num_hidden_layers', 28), pattern=(Block(attention, feed_forward, norm),),
    **_read(fields, d_model, norm, read_rope(fields)[0]))


def write_gemma(config: Architecture) -> dict[str, Any]:
  block = expect_kind(config.pattern[0], Block, 'pattern[0]')
  feed_forward = expect_kind(block.feed_forward, GLU, 'pattern[0].feed_forward')
  activation = ACTIVATION_NAMES[feed_forward.activation]
  activation = 'gelu_pytorch_tanh' if feed_forward.activation == 'gelu_tanh' else activation
  return _write(config, block) | {'hidden_act': activation, 'hidden_activation': activation}


GEMMA = LLAMA._replace(
  model_type='gemma', architecture='GemmaForCausalLM', read=read_gemma, write=write_gemma,
  resembles=lambda config: isinstance(first_block(config).norm, ZeroCenteredRMSNorm))


# ------------------------------------------------------------------------------------------------ Gemma 2
def read_gemma2(fields: Fields) -> Architecture:
  d_model, num_layers = fields.size('hidden_size', 2_304), fields.size('num_hidden_layers', 26)
  attention = read_attention(
    fields, d_model, heads=8, kv_heads=4, head_dim=256, bias=fields.flag('attention_bias', False),
    soft_cap=fields.optional_number('attn_logit_softcapping', 50.0))
  attention = _scaled(fields, attention, d_model)
  feed_forward = GLU(fields.size('intermediate_size', 9_216),
                     fields.activation('hidden_activation', 'gelu_pytorch_tanh'))
  norm = ZeroCenteredRMSNorm(fields.number('rms_norm_eps', 1e-6))
  window = fields.optional_size('sliding_window', 4_096)
  fields.expect('sliding_window_size', window, 'must be that of sliding_window')
  windows = read_windows(fields, num_layers, window, lambda layer: layer % 2 == 0)
  layers = [SandwichBlock(windowed(attention, window), feed_forward, norm) for window in windows]
  # In some of the files on the Hub hidden_act is another than hidden_activation, and it is not used.
  fields.read.add('hidden_act')
  prefix, pattern = arrange(layers)
  return Architecture(num_layers=num_layers, prefix=prefix, pattern=pattern,
                      **_read(fields, d_model, norm, read_rope(fields)[0]),
                      logit_soft_cap=fields.optional_number('final_logit_softcapping', 30.0))


def write_gemma2(config: Architecture) -> dict[str, Any]:
  layers = [expect_kind(block, SandwichBlock, 'pattern[0]') for block in blocks(config)]
  attention = expect_kind(layers[0].attention, Attention, 'pattern[0].attention')
  feed_forward = expect_kind(layers[0].feed_forward, GLU, 'pattern[0].feed_forward')
  scale = attention.scale or attention.head_size(config.d_model) ** -0.5
  return _write(config, layers[0]) | {
    'hidden_activation': 'gelu_pytorch_tanh' if feed_forward.activation == 'gelu_tanh' else
                         ACTIVATION_NAMES[feed_forward.activation],
    'query_pre_attn_scalar': max(1, round(scale ** -2)),  # an integer there
    'attn_logit_softcapping': attention.soft_cap, 'final_logit_softcapping': config.logit_soft_cap,
  } | write_windows(config, usual=4_096)


GEMMA2 = Family(
  'gemma2', 'Gemma2ForCausalLM', read_gemma2, write_gemma2, MODEL, base_model_prefix='model.', ignored=BUFFERS,
  resembles=lambda config: isinstance(first_block(config), SandwichBlock),
  layer=(
    *ATTENTION,
    ('attention_out_norm/scale',    'model.layers.{N}.post_attention_layernorm.weight',    'D'),
    ('feed_forward_norm/scale',     'model.layers.{N}.pre_feedforward_layernorm.weight',   'D'),
    *GATED,
    ('feed_forward_out_norm/scale', 'model.layers.{N}.post_feedforward_layernorm.weight',  'D'),
  ))


# ------------------------------------------------------------------------------------------------ Gemma 3
def read_gemma3(fields: Fields) -> Architecture:
  d_model = fields.size('hidden_size', 2_304)
  num_layers = fields.size('num_hidden_layers', 26)
  norm = ZeroCenteredRMSNorm(fields.number('rms_norm_eps', 1e-6))
  attention = read_attention(
    fields, d_model, heads=8, kv_heads=4, head_dim=256, bias=fields.flag('attention_bias', False),
    qk_norm=PerHeadNorm(norm))
  fields.expect('attn_logit_softcapping', None, 'transformers has no cap of attention scores in this family')
  attention = _scaled(fields, attention, d_model)
  feed_forward = GLU(fields.size('intermediate_size', 9_216),
                     fields.activation('hidden_activation', 'gelu_pytorch_tanh'))
  period = fields.size('sliding_window_pattern', fields.size('_sliding_window_pattern', 6))  # the older name first
  windows = read_windows(fields, num_layers, fields.optional_size('sliding_window', 4_096),
                         lambda layer: (layer + 1) % period != 0)
  ropes = read_ropes_by_layer(fields, theta=1e6, local_theta=10_000.0, local_key='rope_local_base_freq')
  layers = [SandwichBlock(windowed(attention, window, ropes.local if window else None), feed_forward, norm)
            for window in windows]
  prefix, pattern = arrange(layers)
  return Architecture(
    num_layers=num_layers, prefix=prefix, pattern=pattern,
    **_read(fields.with_defaults({'vocab_size': 262_208}), d_model, norm, ropes.everywhere),
    logit_soft_cap=fields.optional_number('final_logit_softcapping', None))


def write_gemma3(config: Architecture) -> dict[str, Any]:
  return write_gemma2(config) | write_ropes_by_layer(config, local_key='rope_local_base_freq')


GEMMA3 = GEMMA2._replace(
  model_type='gemma3_text', architecture='Gemma3ForCausalLM', read=read_gemma3, write=write_gemma3,
  resembles=lambda config: isinstance(first_block(config), SandwichBlock) and has_norms_per_head(config))


# ------------------------------------------------------------------------------------------------ all
def _scaled(fields: Fields, attention: Attention, d_model: int) -> Attention:
  """The attention whose scores are divided by the root of `query_pre_attn_scalar`."""
  scalar = fields.number('query_pre_attn_scalar', 256)
  require(scalar > 0, 'query_pre_attn_scalar', scalar, 'use a positive number')
  is_usual = scalar == attention.head_size(d_model)
  return dataclasses.replace(attention, scale=None if is_usual else scalar ** -0.5)


def _read(fields: Fields, d_model: int, norm: ZeroCenteredRMSNorm, rope: RoPE) -> dict[str, Any]:
  return dict(
    vocab_size=fields.size('vocab_size', 256_000), d_model=d_model, positions=rope, norm=norm,
    tied_head=fields.flag('tie_word_embeddings', True), embedding_scale=d_model ** 0.5,
    init=NormalInit(fields.number('initializer_range', 0.02)))


def _write(config: Architecture, block: Block | SandwichBlock) -> dict[str, Any]:
  attention = expect_kind(block.attention, Attention, 'pattern[0].attention')
  feed_forward = expect_kind(block.feed_forward, GLU, 'pattern[0].feed_forward')
  return write_attention(config, attention) | {
    'attention_bias': attention.bias, 'intermediate_size': feed_forward.width(config.d_model),
    'rms_norm_eps': block.norm.eps}
