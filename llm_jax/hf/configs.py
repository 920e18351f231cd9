"""`config.json` of Hugging Face to an `Architecture`, and back. What we cannot express is refused, never ignored."""
import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from llm_jax.config.architecture import (
  GLU,
  MLP,
  Architecture,
  Attention,
  Block,
  LayerNorm,
  LearnedPositions,
  NormalInit,
  RMSNorm,
  RoPE,
)
from llm_jax.config.count import blocks
from llm_jax.config.errors import ConfigError, require
from llm_jax.hf.tables import FAMILIES, family_of

ACTIVATIONS = {'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh', 'gelu': 'gelu', 'silu': 'silu',
               'swish': 'silu', 'relu': 'relu'}
ACTIVATION_NAMES = {'gelu_tanh': 'gelu_new', 'gelu': 'gelu', 'silu': 'silu', 'relu': 'relu'}

# Entries that do not change what the decoder computes. Any other that is not read must be empty, zero or false.
HARMLESS = re.compile(
  r'_token_id$|^summary_|^(transformers_version|architectures|model_type|_name_or_path|torch_dtype|dtype|use_cache|'
  r'return_dict|id2label|label2id|task_specific_params|chunk_size_feed_forward|gradient_checkpointing|n_ctx|'
  r'max_position_embeddings|pretraining_tp|reorder_and_upcast_attn|attn_implementation|_attn_implementation_autoset)$')


class _Fields:
  """A `config.json` that remembers what was read."""

  def __init__(self, values: Mapping[str, Any]):
    self.values, self.read = values, set()

  def get(self, key: str, default: Any) -> Any:
    """The value, or the default that `transformers` has for it where it is absent or null."""
    self.read.add(key)
    value = self.values.get(key)
    return default if value is None else value

  def size(self, key: str, default: int | None) -> int | None:
    value = self.get(key, default)
    require(value is None or (isinstance(value, int) and value > 0), key, value, 'use a positive integer')
    return value

  def number(self, key: str, default: float) -> float:
    value = self.get(key, default)
    require(isinstance(value, int | float) and math.isfinite(value) and value >= 0, key, value,
            'use a finite number of 0 or more')
    return value

  def activation(self, key: str, default: str) -> str:
    value = self.get(key, default)
    require(value in ACTIVATIONS, key, value, f'use one of {tuple(ACTIVATIONS)}')
    return ACTIVATIONS[value]

  def finish(self) -> None:
    for key, value in self.values.items():
      if key not in self.read and value and not HARMLESS.search(key):
        raise ConfigError(key, value, 'this entry of config.json is not supported for this family')


def config_from_hf(values: Mapping[str, Any]) -> Architecture:
  """The decoder that a `config.json` (as a dict) describes.

  Raises: ConfigError naming the entry that is wrong or that we cannot express.
  """
  fields = _Fields(values)
  match values.get('model_type'):
    case 'gpt2':
      architecture = _gpt2(fields)
    case 'llama':
      architecture = _llama(fields)
    case other:
      raise ConfigError('model_type', other, f'use one of {tuple(FAMILIES)}')
  fields.finish()
  return architecture


def _gpt2(fields: _Fields) -> Architecture:
  require(fields.get('scale_attn_weights', True), 'scale_attn_weights', False, 'attention is always scaled here')
  dropout = fields.number('resid_pdrop', 0.1)
  for key in ('embd_pdrop', 'attn_pdrop'):
    other = fields.get(key, 0.1)
    require(other == dropout, key, other, f'one dropout serves all here: use resid_pdrop={dropout}')
  norm = LayerNorm(fields.number('layer_norm_epsilon', 1e-5))
  feed_forward = MLP(fields.size('n_inner', None), fields.activation('activation_function', 'gelu_new'), bias=True)
  return Architecture(
    vocab_size=fields.size('vocab_size', 50_257), d_model=fields.size('n_embd', 768),
    num_layers=fields.size('n_layer', 12),
    pattern=(Block(Attention(fields.size('n_head', 12), bias=True), feed_forward, norm),),
    positions=LearnedPositions(fields.size('n_positions', 1_024)), norm=norm,
    tied_head=fields.get('tie_word_embeddings', True), dropout=dropout,
    init=NormalInit(fields.number('initializer_range', 0.02)))


def _llama(fields: _Fields) -> Architecture:
  d_model, heads = fields.size('hidden_size', 4_096), fields.size('num_attention_heads', 32)
  kv_heads, head_dim = fields.size('num_key_value_heads', heads), fields.size('head_dim', None)
  attention = Attention(  # None where the number follows from another, so that equal decoders have equal configurations
    heads, None if kv_heads == heads else kv_heads, None if head_dim and head_dim * heads == d_model else head_dim,
    bias=fields.get('attention_bias', False))
  feed_forward = GLU(fields.size('intermediate_size', 11_008), fields.activation('hidden_act', 'silu'),
                     bias=fields.get('mlp_bias', False))
  norm = RMSNorm(fields.number('rms_norm_eps', 1e-6))
  return Architecture(
    vocab_size=fields.size('vocab_size', 32_000), d_model=d_model, num_layers=fields.size('num_hidden_layers', 32),
    pattern=(Block(attention, feed_forward, norm),), positions=_rope(fields), norm=norm,
    tied_head=fields.get('tie_word_embeddings', False), init=NormalInit(fields.number('initializer_range', 0.02)))


def _rope(fields: _Fields) -> RoPE:
  """`rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (before)."""
  theta = fields.number('rope_theta', 10_000.0)
  for key in ('rope_scaling', 'rope_parameters'):
    given = fields.get(key, {})
    require(isinstance(given, Mapping), key, given, 'must be an object')
    theta = given.get('rope_theta', theta)
    kind = given.get('rope_type', given.get('type', 'default'))
    others = {k: v for k, v in given.items() if k not in ('rope_theta', 'rope_type', 'type')}
    require(kind == 'default' and not others, key, given, 'scaled or partial rotary positions are not supported')
  require(isinstance(theta, int | float), 'rope_theta', theta, 'use a number such as 10000')
  return RoPE(float(theta))


def config_to_hf(config: Architecture, context: int = 2_048) -> dict[str, Any]:
  """A `config.json` that `transformers` builds the same decoder from.

  Args:
    context: `max_position_embeddings` where the positions have no end of their own; it limits what others generate.

  Raises: ConfigError naming the first field that no family has.
  """
  family, block = family_of(config), config.pattern[0]
  values = {'model_type': family.model_type, 'architectures': [family.architecture], 'dtype': 'float32',
            'vocab_size': config.vocab_size, 'tie_word_embeddings': config.tied_head,
            'initializer_range': config.init.std, 'bos_token_id': None, 'eos_token_id': None}
  attention, activation = block.attention, ACTIVATION_NAMES[block.feed_forward.activation]
  if family.model_type == 'gpt2':
    values |= {
      'n_embd': config.d_model, 'n_layer': config.num_layers, 'n_head': attention.num_heads,
      'n_inner': block.feed_forward.d_ff, 'n_positions': config.positions.max_length, 'activation_function': activation,
      'layer_norm_epsilon': config.norm.eps,
      'resid_pdrop': config.dropout, 'embd_pdrop': config.dropout, 'attn_pdrop': config.dropout}
  else:
    base = config.positions.base
    require(config.d_model % attention.num_heads == 0, 'model.d_model', config.d_model,
            f'transformers needs a multiple of num_heads={attention.num_heads}, even with another head_dim')
    values |= {
      'hidden_size': config.d_model, 'num_hidden_layers': config.num_layers,
      'intermediate_size': block.feed_forward.width(config.d_model),
      'num_attention_heads': attention.num_heads, 'num_key_value_heads': attention.kv_heads,
      'head_dim': attention.head_size(config.d_model), 'attention_bias': attention.bias,
      'mlp_bias': block.feed_forward.bias, 'hidden_act': activation, 'rms_norm_eps': config.norm.eps,
      # Twice: version 5 of transformers reads the first, older readers the second.
      'rope_parameters': {'rope_type': 'default', 'rope_theta': base}, 'rope_theta': base,
      'max_position_embeddings': context}
  different = _difference('model', _resolved(config), _resolved(config_from_hf(values)))
  if different:  # what the family cannot say was lost on the way
    raise ConfigError(*different, f'a {family.model_type} model cannot have this, so it cannot be exported')
  return values


def _resolved(config: Architecture) -> Architecture:
  """The same decoder with derived sizes as numbers, all blocks in the pattern, and no word on initialisation."""
  def resolve(block: Block) -> Block:
    heads, size = block.attention.kv_heads, block.attention.head_size(config.d_model)
    return dataclasses.replace(
      block, attention=dataclasses.replace(block.attention, num_kv_heads=heads, head_dim=size),
      feed_forward=dataclasses.replace(block.feed_forward, d_ff=block.feed_forward.width(config.d_model)))
  return dataclasses.replace(config, prefix=(), pattern=tuple(map(resolve, blocks(config))), init=NormalInit())


def _difference(path: str, wanted: Any, got: Any) -> tuple[str, Any] | None:
  """Path and wanted value of the first field that differs."""
  if wanted == got:
    return None
  if dataclasses.is_dataclass(wanted) and type(wanted) is type(got):
    below = [(f'{path}.{f.name}', getattr(wanted, f.name), getattr(got, f.name)) for f in dataclasses.fields(wanted)]
  elif isinstance(wanted, tuple) and len(wanted) == len(got):
    below = [(f'{path}[{i}]', *pair) for i, pair in enumerate(zip(wanted, got, strict=True))]
  else:
    return path, wanted
  return next(found for found in (_difference(*item) for item in below) if found)
