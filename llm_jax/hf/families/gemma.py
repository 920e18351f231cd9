"""Gemma and Gemma 2: embeddings times sqrt(d_model), norms whose scale is stored as its difference from 1, GeGLU.

Gemma 2 norms what each half of a block adds, caps scores and logits, and alternates windows with full attention.
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
  SandwichBlock,
  ZeroCenteredRMSNorm,
)
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
  read_attention,
  write_attention,
)
from llm_jax.hf.rope import read_rope


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
    **_read(fields, d_model, norm))


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
  size, scalar = attention.head_size(d_model), fields.number('query_pre_attn_scalar', 256)
  require(scalar > 0, 'query_pre_attn_scalar', scalar, 'use a positive number')
  feed_forward = GLU(fields.size('intermediate_size', 9_216),
                     fields.activation('hidden_activation', 'gelu_pytorch_tanh'))
  norm = ZeroCenteredRMSNorm(fields.number('rms_norm_eps', 1e-6))
  kinds = fields.get('layer_types', [('sliding_attention', 'full_attention')[i % 2] for i in range(num_layers)])
  windows = {'sliding_attention': fields.optional_size('sliding_window', 4_096), 'full_attention': None}
  fields.expect('sliding_window_size', windows['sliding_attention'], 'must be that of sliding_window')
  require(isinstance(kinds, list) and len(kinds) == num_layers and all(kind in windows for kind in kinds),
          'layer_types', kinds, f'use a list of {num_layers} times one of {tuple(windows)}')
  layers = [SandwichBlock(
    dataclasses.replace(attention, window=windows[kind], scale=None if scalar == size else scalar ** -0.5),
    feed_forward, norm) for kind in kinds]
  # In some of the files on the Hub hidden_act is another than hidden_activation, and it is not used.
  fields.read.add('hidden_act')
  prefix, pattern = arrange(layers)
  return Architecture(num_layers=num_layers, prefix=prefix, pattern=pattern, **_read(fields, d_model, norm),
                      logit_soft_cap=fields.optional_number('final_logit_softcapping', 30.0))


def write_gemma2(config: Architecture) -> dict[str, Any]:
  layers = [expect_kind(block, SandwichBlock, 'pattern[0]') for block in blocks(config)]
  attention = expect_kind(layers[0].attention, Attention, 'pattern[0].attention')
  windows = [expect_kind(block.attention, Attention, 'pattern[0].attention').window for block in layers]
  feed_forward = expect_kind(layers[0].feed_forward, GLU, 'pattern[0].feed_forward')
  scale = attention.scale or attention.head_size(config.d_model) ** -0.5
  return _write(config, layers[0]) | {
    'hidden_activation': 'gelu_pytorch_tanh' if feed_forward.activation == 'gelu_tanh' else
                         ACTIVATION_NAMES[feed_forward.activation],
    'query_pre_attn_scalar': max(1, round(scale ** -2)),  # an integer there
    'attn_logit_softcapping': attention.soft_cap, 'final_logit_softcapping': config.logit_soft_cap,
    'sliding_window': next((window for window in windows if window), 4_096),  # a number there, used or not
    'layer_types': ['sliding_attention' if window else 'full_attention' for window in windows]}


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


# ------------------------------------------------------------------------------------------------ both
def _read(fields: Fields, d_model: int, norm: ZeroCenteredRMSNorm) -> dict[str, Any]:
  return dict(
    vocab_size=fields.size('vocab_size', 256_000), d_model=d_model, positions=read_rope(fields)[0], norm=norm,
    tied_head=fields.flag('tie_word_embeddings', True), embedding_scale=d_model ** 0.5,
    init=NormalInit(fields.number('initializer_range', 0.02)))


def _write(config: Architecture, block: Block | SandwichBlock) -> dict[str, Any]:
  attention = expect_kind(block.attention, Attention, 'pattern[0].attention')
  feed_forward = expect_kind(block.feed_forward, GLU, 'pattern[0].feed_forward')
  return write_attention(config, attention) | {
    'attention_bias': attention.bias, 'intermediate_size': feed_forward.width(config.d_model),
    'rms_norm_eps': block.norm.eps}
