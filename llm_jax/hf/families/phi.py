"""Phi-3, 3.5 and 4: Llama whose files hold queries, keys and values in one matrix, and gate and up in another. LongRoPE
stretches the longer ones, and Phi-4-mini turns three quarters of a head."""
import dataclasses
from collections.abc import Mapping
from typing import Any

from llm_jax.config.errors import require
from llm_jax.config.model.architecture import (
  GLU,
  Architecture,
  Attention,
  Block,
  LongRoPEScaling,
  NormalInit,
  RMSNorm,
  RoPE,
)
from llm_jax.hf.families.llama import LLAMA
from llm_jax.hf.fields import ACTIVATION_NAMES, Fields, is_number
from llm_jax.hf.parts import FEED_FORWARD_NORM, expect_kind, first_block, read_attention, write_attention
from llm_jax.hf.rope import read_rope, turned_share

LAYER = (
  ('attention_norm/scale',    'model.layers.{N}.input_layernorm.weight',            'D'),
  (('attention/query/w', 'attention/key/w', 'attention/value/w'),
                              'model.layers.{N}.self_attn.qkv_proj.weight',         'D H K -> (H K)+ D'),
  ('attention/out/w',         'model.layers.{N}.self_attn.o_proj.weight',           'H K D -> D (H K)'),
  *FEED_FORWARD_NORM,
  (('feed_forward/gate/w', 'feed_forward/up/w'),
                              'model.layers.{N}.mlp.gate_up_proj.weight',           'D F -> F+ D'),
  ('feed_forward/down/w',     'model.layers.{N}.mlp.down_proj.weight',              'F D -> D F'),
)
# What the published files name: the code that `transformers` took over as the family's own, and a tokenizer.
OWN_CODE = ('configuration_phi3.Phi3Config', 'modeling_phi3.Phi3ForCausalLM')
OLDER_NAMES = ('su', 'yarn')  # of LongRoPE, in this family


def read(fields: Fields) -> Architecture:
  _pass_over_own_code(fields)
  for key in ('resid_pdrop', 'embd_pdrop'):
    fields.expect(key, 0.0, 'dropout of its own is not supported in this family')
  for key in ('full_attn_mod', 'interpolate_factor'):
    fields.expect(key, 1, 'only 1 is supported, as in Phi-4-mini')
  d_model, original = fields.size('hidden_size', 3_072), fields.size('original_max_position_embeddings', 4_096)
  attention = read_attention(fields, d_model, heads=32, kv_heads=None,
                             window=fields.optional_size('sliding_window', None))
  attention = dataclasses.replace(attention, rotary_dim=_read_rotary_dim(fields, attention.head_size(d_model)))
  feed_forward = GLU(fields.size('intermediate_size', 8_192), fields.activation('hidden_act', 'silu'))
  norm = RMSNorm(fields.number('rms_norm_eps', 1e-5))
  return Architecture(
    vocab_size=fields.size('vocab_size', 32_064), d_model=d_model, num_layers=fields.size('num_hidden_layers', 32),
    pattern=(Block(attention, feed_forward, norm),), positions=read_rope(_as_others_say(fields, original))[0],
    norm=norm, tied_head=fields.flag('tie_word_embeddings', False),
    init=NormalInit(fields.number('initializer_range', 0.02)), family='phi3')


def _pass_over_own_code(fields: Fields) -> None:
  """The published files name code beside them. `transformers` has the same as its own, so it is neither run nor missed;
  other code is refused."""
  named = fields.values.get('auto_map')
  if isinstance(named, Mapping) and all(each in OWN_CODE for key, each in named.items() if key != 'AutoTokenizer'):
    fields.read.add('auto_map')


def _read_rotary_dim(fields: Fields, head_dim: int) -> int | None:
  """`partial_rotary_factor` stands by itself, or in the entries of the positions."""
  given = {key: fields.get(key, {}) for key in ('rope_scaling', 'rope_parameters')}
  found = [entries['partial_rotary_factor'] for entries in given.values()
           if isinstance(entries, Mapping) and 'partial_rotary_factor' in entries]
  factor = fields.get('partial_rotary_factor', found[0] if found else 1.0)
  is_fine = is_number(factor) and 0 < factor <= 1 and all(each == factor for each in found)
  require(is_fine, 'partial_rotary_factor', factor, 'use one number above 0 and at most 1 wherever it stands')
  size = int(head_dim * factor)
  require(size > 1, 'partial_rotary_factor', factor, f'it turns {size} of {head_dim} numbers: use a larger one')
  return None if size == head_dim else size


def _as_others_say(fields: Fields, original: int) -> Fields:
  """The entries of the positions as other families have them, with the length that the model was trained on before."""
  values = dict(fields.values)
  for key in ('rope_scaling', 'rope_parameters'):
    if not isinstance(values.get(key), Mapping):
      continue
    entries = {name: value for name, value in values[key].items() if name != 'partial_rotary_factor'}
    for name in ('type', 'rope_type'):
      if entries.get(name) in OLDER_NAMES:
        entries[name] = 'longrope'
    kind = entries.get('rope_type', entries.get('type', 'default'))
    require(kind in ('default', 'longrope'), f'{key}.rope_type', kind, 'this family has longrope alone')
    if kind == 'longrope':
      stated = entries.setdefault('original_max_position_embeddings', original)
      require(stated == original, f'{key}.original_max_position_embeddings', stated,
              f'transformers goes by the entry of that name outside of {key}, {original}: let them agree')
    values[key] = entries
  changed = Fields(values)
  changed.read = fields.read
  return changed


def write(config: Architecture) -> dict[str, Any]:
  block = expect_kind(config.pattern[0], Block, 'pattern[0]')
  feed_forward = expect_kind(block.feed_forward, GLU, 'pattern[0].feed_forward')
  attention = expect_kind(block.attention, Attention, 'pattern[0].attention')
  rope = expect_kind(config.positions, RoPE, 'positions')
  values = write_attention(config, attention) | {
    'intermediate_size': feed_forward.width(config.d_model), 'hidden_act': ACTIVATION_NAMES[feed_forward.activation],
    'rms_norm_eps': block.norm.eps, 'sliding_window': attention.window}
  size, whole = attention.rotary_size(config.d_model), attention.head_size(config.d_model)
  if size != whole:
    values['partial_rotary_factor'] = turned_share(size, whole)
  if isinstance(rope.scaling, LongRoPEScaling):
    values['original_max_position_embeddings'] = rope.scaling.original_length
  return values


def is_phi(config: Architecture) -> bool:
  """Whether it came as one; or turns a part of a head, and looks like a Llama otherwise."""
  block = first_block(config)
  turns_a_part = isinstance(block.attention, Attention) and block.attention.rotary_dim is not None
  return config.family == 'phi3' or isinstance(block, Block) and turns_a_part


PHI3 = LLAMA._replace(
  model_type='phi3', architecture='Phi3ForCausalLM', read=read, write=write, layer=LAYER, resembles=is_phi)
