"""Rotary positions in `config.json`: `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling`
(before)."""
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from llm_jax.config.errors import ConfigError, require
from llm_jax.config.model.architecture import (
  Architecture,
  Attention,
  LinearScaling,
  Llama3Scaling,
  LongRoPEScaling,
  NTKScaling,
  RoPE,
  Scaling,
  YaRNScaling,
)
from llm_jax.config.model.count import blocks
from llm_jax.hf.fields import Fields, is_number, is_size
from llm_jax.hf.parts import FULL, SLIDING, expect_kind, first_block

KINDS = {  # the entries of each kind, rope_theta aside
  'default': (),
  'linear': ('factor',),
  'llama3': ('factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings'),
  'yarn': ('factor', 'original_max_position_embeddings', 'beta_fast', 'beta_slow', 'attention_factor', 'mscale',
           'mscale_all_dim', 'truncate'),
  'longrope': ('short_factor', 'long_factor', 'factor', 'original_max_position_embeddings', 'attention_factor'),
}
NEEDED = {  # of these, where there is no rule for an absent one
  'yarn': ('factor',), 'longrope': ('short_factor', 'long_factor', 'factor')}


def read_rope(fields: Fields, theta: float = 10_000.0) -> tuple[RoPE, float]:
  """The positions, and the factor of a DeepSeek model's attention scores on top of 1 / sqrt(head size).

  Args:
    theta: the family's default.
  """
  theta = fields.number('rope_theta', theta)
  length = fields.size('max_position_embeddings', None)
  key = 'rope_parameters'
  given: dict[str, Any] = {}
  for name in ('rope_scaling', 'rope_parameters'):
    value = fields.get(name, {})
    require(isinstance(value, Mapping), name, value, 'must be an object')
    if not value:
      continue
    entries: dict[str, Any] = {'rope_theta': theta} | {k: v for k, v in value.items() if v is not None}
    kinds = {entries.pop(k) for k in ('rope_type', 'type') if isinstance(entries.get(k), str)}
    require(len(kinds) <= 1, name, fields.get(name, {}), 'type and rope_type must agree')
    if entries.pop('partial_rotary_factor', 1) != 1:
      raise ConfigError(name, fields.get(name, {}), 'partial rotary positions are not supported')
    entries['rope_type'] = next(iter(kinds), 'default')
    # If they differ, different versions of transformers follow different ones.
    require(
      not given or given == entries, name, entries, 'rope_scaling (with rope_theta) and rope_parameters must agree'
    )
    key, given = name, entries
  theta = given.pop('rope_theta', theta)
  require(is_number(theta) and theta > 1, 'rope_theta', theta, 'use a number above 1, such as 10000')
  kind = given.pop('rope_type', 'default')
  require(kind in KINDS, key, kind, f'rope_type must be one of {tuple(KINDS)}')
  unknown = sorted(given.keys() - set(KINDS[kind]))
  require(not unknown, key, given, f'{unknown} is not supported with rope_type {kind}')
  truncate = given.pop('truncate', True)
  require(isinstance(truncate, bool), f'{key}.truncate', truncate, 'use true or false')
  for name, value in given.items():
    if name in ('short_factor', 'long_factor'):
      is_fine = isinstance(value, list) and all(is_number(factor) and factor > 0 for factor in value)
      require(is_fine, f'{key}.{name}', value, 'use a list of positive numbers')
    else:
      require(is_number(value) and value >= 0, f'{key}.{name}', value, 'use a finite number of 0 or more')
  if kind in ('llama3', 'yarn', 'longrope'):
    given.setdefault('original_max_position_embeddings', length)
    original = given['original_max_position_embeddings']
    require(is_size(original), f'{key}.original_max_position_embeddings', original, 'use a positive integer')
    if kind != 'llama3' and length:
      given.setdefault('factor', length / original)
  needed = NEEDED.get(kind, KINDS[kind])
  missing = [name for name in needed if name not in given]
  require(not missing, key, given, f'rope_type {kind} needs {missing}')
  return RoPE(float(theta), _scaling(kind, given, truncate), length), _score_factor(kind, given)


def _scaling(kind: str, given: dict[str, Any], truncate: bool) -> Scaling | None:
  match kind:
    case 'default':
      return None
    case 'linear':
      return LinearScaling(float(given['factor']))
    case 'llama3':
      return Llama3Scaling(float(given['factor']), float(given['low_freq_factor']), float(given['high_freq_factor']),
                           given['original_max_position_embeddings'])
    case 'yarn':
      factor, attention_factor = float(given['factor']), given.get('attention_factor')
      if attention_factor is None and given.get('mscale') and given.get('mscale_all_dim'):
        attention_factor = _mscale(factor, given['mscale']) / _mscale(factor, given['mscale_all_dim'])
      return YaRNScaling(factor, given['original_max_position_embeddings'], float(given.get('beta_fast') or 32),
                         float(given.get('beta_slow') or 1), attention_factor, truncate)
    case 'longrope':
      # A context shorter than the original one multiplies nothing, as a factor of 1.
      return LongRoPEScaling(tuple(map(float, given['short_factor'])), tuple(map(float, given['long_factor'])),
                             max(float(given['factor']), 1.0), given['original_max_position_embeddings'],
                             given.get('attention_factor'))


def _score_factor(kind: str, given: dict[str, Any]) -> float:
  return _mscale(given['factor'], given.get('mscale_all_dim', 0.0)) ** 2 if kind == 'yarn' else 1.0


def _mscale(factor: float, weight: float) -> float:
  """YaRN's equation 22 with a weight, as in DeepSeek's code."""
  if factor <= 1:
    return 1.0
  return 0.1 * weight * math.log(factor) + 1.0


class Ropes(NamedTuple):
  """Of a model whose layers with a window turn otherwise than those that see all tokens.   local: None where they do
  not."""
  everywhere: RoPE
  local: RoPE | None


def read_ropes_by_layer(fields: Fields, theta: float, local_theta: float, local_key: str = '') -> Ropes:
  """`rope_parameters` has an object for each of `layer_types` (transformers 5); before, `rope_scaling` was that of the
  layers without a window, and the theta of the others stood under `local_key`.

  Args:
    theta, local_theta: the family's defaults, without and with a window.
  """
  by_kind = fields.get('rope_parameters', {})
  is_fine = isinstance(by_kind, Mapping) and all(isinstance(by_kind[kind] or {}, Mapping) for kind in by_kind)
  require(is_fine and by_kind.keys() <= {SLIDING, FULL}, 'rope_parameters', by_kind,
          f'use an object with an object for each of {(SLIDING, FULL)}')
  length = fields.size('max_position_embeddings', None)
  shared = {'max_position_embeddings': length, 'rope_theta': fields.number('rope_theta', theta)}
  if local_key:
    local_theta = fields.number(local_key, local_theta)
  scaling = fields.get('rope_scaling', {})
  everywhere, _ = read_rope(Fields({**shared, 'rope_parameters': by_kind.get(FULL), 'rope_scaling': scaling}))
  local, _ = read_rope(Fields({**shared, 'rope_theta': local_theta, 'rope_parameters': by_kind.get(SLIDING)}))
  local = dataclasses.replace(local, max_length=None)
  return Ropes(everywhere, None if local == dataclasses.replace(everywhere, max_length=None) else local)


def write_ropes_by_layer(config: Architecture, local_key: str = '') -> dict[str, Any]:
  """The entries that `read_ropes_by_layer` reads, in both forms."""
  ropes: dict[str, Any] = {FULL: config.positions, SLIDING: config.positions}
  size = first_block(config).attention.rotary_size(config.d_model)
  for block in blocks(config):
    attention = block.attention
    if isinstance(attention, Attention):
      ropes[SLIDING if attention.window else FULL] = config.rope_of(attention)
  written = {kind: write_rope(expect_kind(rope, RoPE, 'positions'), size, 0) for kind, rope in ropes.items()}
  by_kind = {kind: entries['rope_parameters'] for kind, entries in written.items()}
  local_theta = {local_key: by_kind[SLIDING]['rope_theta']} if local_key else {}
  return local_theta | {'rope_parameters': by_kind, 'rope_theta': written[FULL]['rope_theta'],
                        'rope_scaling': written[FULL]['rope_scaling']}


def write_rope(rope: RoPE, size: int, max_length: int, score_factor: float = 1.0) -> dict[str, Any]:
  """The entries of `config.json`, in two forms: version 5 of transformers reads the first, older readers the other.

  Args:
    size: how many numbers of a head are turned.
    max_length: `max_position_embeddings` if the positions state none.
    score_factor: see `read_rope`; YaRN's mscale and mscale_all_dim state it.
  """
  rope = without_ntk(rope, size)
  match rope.scaling:
    case None:
      given = {'rope_type': 'default'}
    case LinearScaling(factor):
      given = {'rope_type': 'linear', 'factor': factor}
    case Llama3Scaling(factor, low, high, original):
      given = {'rope_type': 'llama3', 'factor': factor, 'low_freq_factor': low, 'high_freq_factor': high,
               'original_max_position_embeddings': original}
    case YaRNScaling(factor, original, fast, slow):
      given = {'rope_type': 'yarn', 'factor': factor, 'original_max_position_embeddings': original,
               'beta_fast': fast, 'beta_slow': slow}
      if score_factor != 1 and factor > 1:
        weight = lambda scale: round((scale - 1) / (0.1 * math.log(factor)), 9)
        given['mscale_all_dim'] = weight(math.sqrt(score_factor))
        given['mscale'] = weight(rope.scaling.magnitude * math.sqrt(score_factor))
      elif rope.scaling.attention_factor is not None:
        given['attention_factor'] = float(rope.scaling.attention_factor)
      if not rope.scaling.truncate:
        given['truncate'] = False
    case LongRoPEScaling(short, long, factor, original, attention_factor):
      given = {'rope_type': 'longrope', 'short_factor': list(short), 'long_factor': list(long), 'factor': factor,
               'original_max_position_embeddings': original}
      if attention_factor is not None:
        given['attention_factor'] = float(attention_factor)
  old = None if rope.scaling is None else {'type': given['rope_type'], **given}
  return {'rope_parameters': {**given, 'rope_theta': rope.theta}, 'rope_theta': rope.theta, 'rope_scaling': old,
          'max_position_embeddings': rope.max_length or max_length}


def turned_share(turned: int, size: int) -> float:
  """What part of a head's `size` numbers `turned` are, such that `int(size * share)` is `turned`."""
  share = turned / size
  return share if int(size * share) == turned else math.nextafter(share, 2)


def without_ntk(rope: RoPE, size: int) -> RoPE:
  """The same rotation without NTK-aware scaling, which is a larger theta; `transformers` has no other name for it."""
  if not isinstance(rope.scaling, NTKScaling):
    return rope
  return RoPE(rope.theta * rope.scaling.factor ** (size / (size - 2)), None, rope.max_length)
