"""GPT-NeoX, and Pythia: attention and feed-forward beside each other, both reading the block's input; a part of each
head turned; queries, keys and values of a head next to each other in one matrix."""
import re
from collections.abc import Mapping
from typing import Any

from llm_jax.config.errors import require
from llm_jax.config.model.architecture import (
  MLP,
  Architecture,
  Attention,
  Block,
  LayerNorm,
  NormalInit,
  ParallelBlock,
  RoPE,
)
from llm_jax.hf.family import Family
from llm_jax.hf.fields import ACTIVATION_NAMES, Fields
from llm_jax.hf.parts import expect_kind, first_block
from llm_jax.hf.rope import read_rope, turned_share, write_rope

SHARE, THETA = 0.25, 10_000.0  # of a head that is turned; where a file says nothing

LAYER = (
  ('attention_norm/scale',    'gpt_neox.layers.{N}.input_layernorm.weight',              'D'),
  ('attention_norm/bias',     'gpt_neox.layers.{N}.input_layernorm.bias',                'D'),
  ('feed_forward_norm/scale', 'gpt_neox.layers.{N}.post_attention_layernorm.weight',     'D'),
  ('feed_forward_norm/bias',  'gpt_neox.layers.{N}.post_attention_layernorm.bias',       'D'),
  (('attention/query/w', 'attention/key/w', 'attention/value/w'),
                              'gpt_neox.layers.{N}.attention.query_key_value.weight',    'D H K -> (H K+) D'),
  (('attention/query/b', 'attention/key/b', 'attention/value/b'),
                              'gpt_neox.layers.{N}.attention.query_key_value.bias',      'H K -> (H K+)'),
  ('attention/out/w',         'gpt_neox.layers.{N}.attention.dense.weight',              'H K D -> D (H K)'),
  ('attention/out/b',         'gpt_neox.layers.{N}.attention.dense.bias',                'D'),
  ('feed_forward/up/w',       'gpt_neox.layers.{N}.mlp.dense_h_to_4h.weight',            'D F -> F D'),
  ('feed_forward/up/b',       'gpt_neox.layers.{N}.mlp.dense_h_to_4h.bias',              'F'),
  ('feed_forward/down/w',     'gpt_neox.layers.{N}.mlp.dense_4h_to_h.weight',            'F D -> D F'),
  ('feed_forward/down/b',     'gpt_neox.layers.{N}.mlp.dense_4h_to_h.bias',              'D'),
)


def read(fields: Fields) -> Architecture:
  d_model, heads = fields.size('hidden_size', 6_144), fields.size('num_attention_heads', 64)
  require(d_model % heads == 0, 'num_attention_heads', heads, f'use a divisor of hidden_size={d_model}')
  rope, share = _read_rope(fields)
  turned = int(d_model // heads * share)
  require(turned > 0, 'rotary_pct', share, f'nothing of a head of {d_model // heads} would be turned: use more')
  attention = Attention(heads, bias=fields.flag('attention_bias', True),
                        rotary_dim=None if turned == d_model // heads else turned)
  width = fields.size('intermediate_size', 24_576)
  feed_forward = MLP(None if width == 4 * d_model else width, fields.activation('hidden_act', 'gelu'), bias=True)
  norm = LayerNorm(fields.number('layer_norm_eps', 1e-5))
  kind = ParallelBlock if fields.flag('use_parallel_residual', True) else Block
  fields.read.add('classifier_dropout')  # of heads for other tasks
  return Architecture(
    vocab_size=fields.size('vocab_size', 50_432), d_model=d_model, num_layers=fields.size('num_hidden_layers', 44),
    pattern=(kind(attention, feed_forward, norm),), positions=rope, norm=norm,
    tied_head=fields.flag('tie_word_embeddings', False), dropout=_read_dropout(fields),
    init=NormalInit(fields.number('initializer_range', 0.02)))


def _read_rope(fields: Fields) -> tuple[RoPE, float]:
  """The positions, and the share of each head that they turn. Version 5 of transformers states it among the entries of
  the positions, and older ones as `rotary_pct`."""
  share = fields.number('rotary_pct', SHARE)
  theta = fields.number('rotary_emb_base', THETA)
  objects: dict[str, Any] = {}
  for name in ('rope_parameters', 'rope_scaling'):
    given = fields.get(name, {})
    if isinstance(given, Mapping) and given.get('partial_rotary_factor') is not None:
      own = Fields(given).number('partial_rotary_factor', SHARE)
      require('rotary_pct' not in fields.values or own == share, f'{name}.partial_rotary_factor', own,
              f'rotary_pct is {share}: say the same')
      share = own
      given = {key: value for key, value in given.items() if key != 'partial_rotary_factor'}
    objects[name] = given
  require(0 < share <= 1, 'rotary_pct', share, 'use a share of each head: more than 0, and at most 1')
  length = fields.size('max_position_embeddings', 2_048)
  values = {'rope_theta': fields.get('rope_theta', theta), 'max_position_embeddings': length}
  return read_rope(Fields(values | objects))[0], share


def _read_dropout(fields: Fields) -> float:
  """One for all, under the names of transformers or those of the first file."""
  dropout = fields.number('hidden_dropout', 0.0)
  for key in ('attention_dropout', 'hidden_dropout_prob', 'attention_probs_dropout_prob'):
    other = fields.get(key, dropout if key.endswith('_prob') else 0.0)
    require(other == dropout, key, other, f'one dropout serves all here: use hidden_dropout={dropout}')
  return dropout


def write(config: Architecture) -> dict[str, Any]:
  block = first_block(config)
  is_parallel = isinstance(block, ParallelBlock)
  block = expect_kind(block, ParallelBlock if is_parallel else Block, 'pattern[0]')
  attention = expect_kind(block.attention, Attention, 'pattern[0].attention')
  feed_forward = expect_kind(block.feed_forward, MLP, 'pattern[0].feed_forward')
  expect_kind(config.norm, LayerNorm, 'norm')
  turned = attention.rotary_size(config.d_model)
  share = turned_share(turned, attention.head_size(config.d_model))
  rope = expect_kind(config.positions, RoPE, 'positions')
  entries = write_rope(rope, turned, 0)
  return {
    'hidden_size': config.d_model, 'num_hidden_layers': config.num_layers, 'num_attention_heads': attention.num_heads,
    'intermediate_size': feed_forward.width(config.d_model), 'hidden_act': ACTIVATION_NAMES[feed_forward.activation],
    'layer_norm_eps': block.norm.eps, 'use_parallel_residual': is_parallel, 'attention_bias': attention.bias,
    'hidden_dropout': config.dropout, 'attention_dropout': config.dropout, 'rotary_pct': share,
    'rotary_emb_base': entries['rope_theta'],
    'rope_parameters': {**entries['rope_parameters'], 'partial_rotary_factor': share}}


GPT_NEOX = Family(
  'gpt_neox', 'GPTNeoXForCausalLM', read, write, layer=LAYER, base_model_prefix='gpt_neox.',
  ignored=re.compile(r'\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$'),
  resembles=lambda config: isinstance(first_block(config).feed_forward, MLP) and isinstance(config.positions, RoPE),
  model=(
    ('embedding/w',             'gpt_neox.embed_in.weight',                      'V D'),
    ('final_norm/scale',        'gpt_neox.final_layer_norm.weight',              'D'),
    ('final_norm/bias',         'gpt_neox.final_layer_norm.bias',                'D'),
    ('head/w',                  'embed_out.weight',                              'V D'),
  ))
