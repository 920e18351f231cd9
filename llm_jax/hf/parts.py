"""What the weight tables and configurations of Llama and its descendants have in common."""
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from llm_jax.config.errors import ConfigError, require
from llm_jax.config.model.architecture import AnyBlock, Architecture, Attention, RoPE
from llm_jax.config.model.attention import PerHeadNorm
from llm_jax.config.model.count import blocks
from llm_jax.hf.fields import Fields

T = TypeVar('T')

MODEL = (
  ('embedding/w',             'model.embed_tokens.weight',                          'V D'),
  ('final_norm/scale',        'model.norm.weight',                                  'D'),
  ('head/w',                  'lm_head.weight',                                     'V D'),
)
ATTENTION = (  # the rows of the two norms are for attention with a qk_norm
  ('attention_norm/scale',    'model.layers.{N}.input_layernorm.weight',            'D'),
  ('attention/query/w',       'model.layers.{N}.self_attn.q_proj.weight',           'D H K -> (H K) D'),
  ('attention/query/b',       'model.layers.{N}.self_attn.q_proj.bias',             'H K -> (H K)'),
  ('attention/query_norm/scale',  'model.layers.{N}.self_attn.q_norm.weight',       'K'),
  ('attention/key/w',         'model.layers.{N}.self_attn.k_proj.weight',           'D G K -> (G K) D'),
  ('attention/key/b',         'model.layers.{N}.self_attn.k_proj.bias',             'G K -> (G K)'),
  ('attention/key_norm/scale',    'model.layers.{N}.self_attn.k_norm.weight',       'K'),
  ('attention/value/w',       'model.layers.{N}.self_attn.v_proj.weight',           'D G K -> (G K) D'),
  ('attention/value/b',       'model.layers.{N}.self_attn.v_proj.bias',             'G K -> (G K)'),
  ('attention/out/w',         'model.layers.{N}.self_attn.o_proj.weight',           'H K D -> D (H K)'),
  ('attention/out/b',         'model.layers.{N}.self_attn.o_proj.bias',             'D'),
)
FEED_FORWARD_NORM = (
  ('feed_forward_norm/scale', 'model.layers.{N}.post_attention_layernorm.weight',   'D'),
)
GATED = (
  ('feed_forward/gate/w',     'model.layers.{N}.mlp.gate_proj.weight',              'D F -> F D'),
  ('feed_forward/gate/b',     'model.layers.{N}.mlp.gate_proj.bias',                'F'),
  ('feed_forward/up/w',       'model.layers.{N}.mlp.up_proj.weight',                'D F -> F D'),
  ('feed_forward/up/b',       'model.layers.{N}.mlp.up_proj.bias',                  'F'),
  ('feed_forward/down/w',     'model.layers.{N}.mlp.down_proj.weight',              'F D -> D F'),
  ('feed_forward/down/b',     'model.layers.{N}.mlp.down_proj.bias',                'D'),
)

EXPERTS = (
  ('feed_forward/router/w',       'model.layers.{N}.mlp.gate.weight',                         'D E -> E D'),
  ('feed_forward/experts/gate/w', 'model.layers.{N}.mlp.experts.{E}.gate_proj.weight',        'E D F -> F D'),
  ('feed_forward/experts/up/w',   'model.layers.{N}.mlp.experts.{E}.up_proj.weight',          'E D F -> F D'),
  ('feed_forward/experts/down/w', 'model.layers.{N}.mlp.experts.{E}.down_proj.weight',        'E F D -> D F'),
)


def read_attention(fields: Fields, d_model: int, *, heads: int, kv_heads: int | None, head_dim: int | None = None,
                   **rest: Any) -> Attention:
  """The arguments are the family's defaults. kv_heads=None means as many as heads; head_dim=None means d_model / heads.

  A number that follows from another one becomes None, so that equal decoders have equal configurations.
  """
  heads = fields.size('num_attention_heads', heads)
  kv_heads = fields.optional_size('num_key_value_heads', kv_heads or heads)  # null: as many as heads, in all families
  head_dim = fields.size('head_dim', head_dim)
  return Attention(heads, None if kv_heads == heads else kv_heads,
                   None if head_dim and head_dim * heads == d_model else head_dim, **rest)


def write_attention(config: Architecture, attention: Attention) -> dict[str, Any]:
  require(config.d_model % attention.num_heads == 0, 'model.d_model', config.d_model,
          f'transformers needs a multiple of num_heads={attention.num_heads}, even with another head_dim')
  return {
    'hidden_size': config.d_model, 'num_hidden_layers': config.num_layers,
    'num_attention_heads': attention.num_heads, 'num_key_value_heads': attention.kv_heads,
    'head_dim': attention.head_size(config.d_model)}


SLIDING, FULL = 'sliding_attention', 'full_attention'  # the names of `layer_types`


def read_windows(fields: Fields, num_layers: int, window: int | None, has_window: Callable[[int], bool]
                 ) -> list[int | None]:
  """The window of each layer, by `layer_types`.   has_window: the layers that have one where the file lists none."""
  kinds = fields.get('layer_types', [SLIDING if has_window(layer) else FULL for layer in range(num_layers)])
  is_list = isinstance(kinds, list) and len(kinds) == num_layers and all(kind in (SLIDING, FULL) for kind in kinds)
  require(is_list, 'layer_types', kinds, f'use a list of {num_layers} times one of {(SLIDING, FULL)}')
  return [window if kind == SLIDING else None for kind in kinds]


def write_windows(config: Architecture, usual: int) -> dict[str, Any]:
  """usual: what the file says where no layer has a window; it must be a number."""
  attentions = [expect_kind(block.attention, Attention, 'pattern[0].attention') for block in blocks(config)]
  windows = [attention.window for attention in attentions]
  return {'sliding_window': next((window for window in windows if window), usual),
          'layer_types': [SLIDING if window else FULL for window in windows]}


def windowed(attention: Attention, window: int | None, positions: RoPE | None = None) -> Attention:
  """The attention of a layer with this window and rotary positions of its own."""
  return dataclasses.replace(attention, window=window, positions=positions)


def first_block(config: Architecture) -> AnyBlock:
  """The block by which a family is recognised."""
  return (config.prefix + config.pattern)[0]


def has_norms_per_head(config: Architecture) -> bool:
  attention = first_block(config).attention
  return isinstance(attention, Attention) and isinstance(attention.qk_norm, PerHeadNorm)


def expect_kind(value: Any, kind: type[T], field: str) -> T:
  """`value`, checked to be a `kind`, the only one that the family has."""
  if not isinstance(value, kind):
    raise ConfigError(f'model.{field}', type(value).__name__, f'no family of transformers has this here, only '
                      f'{kind.__name__}, so it cannot be exported')
  return value


def arrange(layers: Sequence[AnyBlock]) -> tuple[tuple[AnyBlock, ...], tuple[AnyBlock, ...]]:
  """The shortest prefix and pattern that give these blocks."""
  layers = tuple(layers)

  def repeats(start: int, length: int) -> bool:
    rest = layers[start:]
    return len(rest) % length == 0 and rest == rest[:length] * (len(rest) // length)

  candidates = []
  for start in range(len(layers)):
    for length in range(1, len(layers) - start + 1):
      if repeats(start, length):
        candidates.append((start + length, start))
  end, start = min(candidates)
  return layers[:start], layers[start:end]
