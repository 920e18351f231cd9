"""OpenAI's GPT and GPT-2: learned positions, one matrix for queries, keys and values, linear maps as [in, out]."""
import re
from typing import Any

from llm_jax.config.errors import require
from llm_jax.config.model.architecture import (
  MLP,
  Architecture,
  Attention,
  Block,
  LayerNorm,
  LearnedPositions,
  NormalInit,
  PostNormBlock,
  RoPE,
)
from llm_jax.hf.family import Family
from llm_jax.hf.fields import ACTIVATION_NAMES, Fields
from llm_jax.hf.parts import expect_kind, first_block

LAYER = (
  ('attention_norm/scale',    'transformer.h.{N}.ln_1.weight',             'D'),
  ('attention_norm/bias',     'transformer.h.{N}.ln_1.bias',               'D'),
  (('attention/query/w', 'attention/key/w', 'attention/value/w'),
                              'transformer.h.{N}.attn.c_attn.weight',      'D H K -> D (H K)+'),
  (('attention/query/b', 'attention/key/b', 'attention/value/b'),
                              'transformer.h.{N}.attn.c_attn.bias',        'H K -> (H K)+'),
  ('attention/out/w',         'transformer.h.{N}.attn.c_proj.weight',      'H K D -> (H K) D'),
  ('attention/out/b',         'transformer.h.{N}.attn.c_proj.bias',        'D'),
  ('feed_forward_norm/scale', 'transformer.h.{N}.ln_2.weight',             'D'),
  ('feed_forward_norm/bias',  'transformer.h.{N}.ln_2.bias',               'D'),
  ('feed_forward/up/w',       'transformer.h.{N}.mlp.c_fc.weight',         'D F'),
  ('feed_forward/up/b',       'transformer.h.{N}.mlp.c_fc.bias',           'F'),
  ('feed_forward/down/w',     'transformer.h.{N}.mlp.c_proj.weight',       'F D'),
  ('feed_forward/down/b',     'transformer.h.{N}.mlp.c_proj.bias',         'D'),
)
BUFFERS = re.compile(r'\.attn\.(bias|masked_bias)$|(^|\.)position_ids$')


# ------------------------------------------------------------------------------------------------ GPT-2
def read_gpt2(fields: Fields) -> Architecture:
  fields.expect('scale_attn_weights', True, 'attention is always scaled here')
  norm = LayerNorm(fields.number('layer_norm_epsilon', 1e-5))
  feed_forward = MLP(fields.size('n_inner', None), fields.activation('activation_function', 'gelu_new'), bias=True)
  return Architecture(
    vocab_size=fields.size('vocab_size', 50_257), d_model=fields.size('n_embd', 768),
    num_layers=fields.size('n_layer', 12),
    pattern=(Block(Attention(fields.size('n_head', 12), bias=True), feed_forward, norm),),
    positions=LearnedPositions(fields.size('n_positions', 1_024)), norm=norm,
    tied_head=fields.flag('tie_word_embeddings', True), dropout=_dropout(fields),
    init=NormalInit(fields.number('initializer_range', 0.02)))


def write_gpt2(config: Architecture) -> dict[str, Any]:
  block = expect_kind(config.pattern[0], Block, 'pattern[0]')
  feed_forward = expect_kind(block.feed_forward, MLP, 'pattern[0].feed_forward')
  return _write(config, block) | {
    'n_inner': feed_forward.d_ff, 'activation_function': ACTIVATION_NAMES[feed_forward.activation]}


GPT2 = Family(
  'gpt2', 'GPT2LMHeadModel', read_gpt2, write_gpt2, base_model_prefix='transformer.', ignored=BUFFERS,
  resembles=lambda config: not isinstance(config.positions, RoPE), layer=LAYER,
  model=(
    ('embedding/w',             'transformer.wte.weight',                    'V D'),
    ('positions/w',             'transformer.wpe.weight',                    'P D'),
    ('final_norm/scale',        'transformer.ln_f.weight',                   'D'),
    ('final_norm/bias',         'transformer.ln_f.bias',                     'D'),
    ('head/w',                  'lm_head.weight',                            'V D'),
  ))


# ------------------------------------------------------------------------------------------------ GPT
OPENAI_ACTIVATIONS = {'gelu': 'gelu_tanh', 'silu': 'silu', 'swish': 'silu', 'relu': 'relu'}


def read_openai(fields: Fields) -> Architecture:
  activation = fields.get('afn', 'gelu')  # their "gelu" is the one by tanh
  require(activation in OPENAI_ACTIVATIONS, 'afn', activation, f'use one of {tuple(OPENAI_ACTIVATIONS)}')
  norm = LayerNorm(fields.number('layer_norm_epsilon', 1e-5))
  feed_forward = MLP(activation=OPENAI_ACTIVATIONS[activation], bias=True)
  return Architecture(
    vocab_size=fields.size('vocab_size', 40_478), d_model=fields.size('n_embd', 768),
    num_layers=fields.size('n_layer', 12),
    pattern=(PostNormBlock(Attention(fields.size('n_head', 12), bias=True), feed_forward, norm),),
    positions=LearnedPositions(fields.size('n_positions', 512)), norm=None,
    tied_head=fields.flag('tie_word_embeddings', True), dropout=_dropout(fields),
    init=NormalInit(fields.number('initializer_range', 0.02)))


def write_openai(config: Architecture) -> dict[str, Any]:
  block = expect_kind(config.pattern[0], PostNormBlock, 'pattern[0]')
  feed_forward = expect_kind(block.feed_forward, MLP, 'pattern[0].feed_forward')
  names = {ours: theirs for theirs, ours in reversed(OPENAI_ACTIVATIONS.items())}
  require(feed_forward.activation in names, 'model.pattern[0].feed_forward.activation', feed_forward.activation,
          f'an openai-gpt model has one of {tuple(names)}')
  return _write(config, block) | {'afn': names[feed_forward.activation]}


OPENAI_GPT = Family(
  'openai-gpt', 'OpenAIGPTLMHeadModel', read_openai, write_openai, base_model_prefix='transformer.', ignored=BUFFERS,
  resembles=lambda config: GPT2.resembles(config) and isinstance(first_block(config), PostNormBlock), layer=LAYER,
  model=(
    ('embedding/w',             'transformer.tokens_embed.weight',           'V D'),
    ('positions/w',             'transformer.positions_embed.weight',        'P D'),
    ('head/w',                  'lm_head.weight',                            'V D'),
  ))


# ------------------------------------------------------------------------------------------------ both
def _dropout(fields: Fields) -> float:
  dropout = fields.number('resid_pdrop', 0.1)
  for key in ('embd_pdrop', 'attn_pdrop'):
    other = fields.get(key, 0.1)
    require(other == dropout, key, other, f'one dropout serves all here: use resid_pdrop={dropout}')
  return dropout


def _write(config: Architecture, block: Block | PostNormBlock) -> dict[str, Any]:
  attention = expect_kind(block.attention, Attention, 'pattern[0].attention')
  positions = expect_kind(config.positions, LearnedPositions, 'positions')
  return {
    'n_embd': config.d_model, 'n_layer': config.num_layers, 'n_head': attention.num_heads,
    'n_positions': positions.max_length, 'layer_norm_epsilon': block.norm.eps,
    'resid_pdrop': config.dropout, 'embd_pdrop': config.dropout, 'attn_pdrop': config.dropout}
