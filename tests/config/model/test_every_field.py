"""Every field of every part of a model, found by reflection, is set to another value: counts must be those of the
shapes that the modules would make, and the picture must change where the table says so."""
import dataclasses
import math
import re
import typing
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from llm_jax.config.model.architecture import (
  GLU,
  MLP,
  Architecture,
  Attention,
  Block,
  ClampedGLU,
  LatentAttention,
  LayerNorm,
  LearnedPositions,
  LinearScaling,
  Llama3Scaling,
  LongRoPEScaling,
  MixtureOfExperts,
  NoPositions,
  NormalInit,
  NTKScaling,
  OutputNormBlock,
  ParallelBlock,
  PostNormBlock,
  RMSNorm,
  RoPE,
  SandwichBlock,
  SigmoidRouter,
  SinusoidalPositions,
  SoftmaxRouter,
  YaRNScaling,
  ZeroCenteredRMSNorm,
)
from llm_jax.config.model.attention import FullWidthNorm, PerHeadNorm
from llm_jax.config.model.count import (
  count_active_parameters,
  count_matmul_parameters,
  count_multi_token,
  count_parameters,
  count_positions,
)
from llm_jax.modules.cache import cache_bytes, init_cache
from llm_jax.modules.parameters import parameter_shapes
from llm_jax.modules.transformer import named_blocks
from llm_jax.report.model_diagram import draw

# One example of each part. A new part needs one here, and a line in `place`.
EXAMPLES = {type(example): example for example in (
  Architecture(vocab_size=40, d_model=16, num_layers=4, pattern=(Block(Attention(4, 2, 6), GLU(24), RMSNorm()),),
               positions=RoPE(), norm=RMSNorm(), tied_head=True),
  Block(Attention(4, 2, 6), GLU(24), RMSNorm()),
  PostNormBlock(Attention(4, 2, 6), GLU(24), RMSNorm()),
  SandwichBlock(Attention(4, 2, 6), GLU(24), RMSNorm()),
  OutputNormBlock(Attention(4, 2, 6), GLU(24), RMSNorm()),
  ParallelBlock(Attention(4, 2, 6), GLU(24), RMSNorm()),
  Attention(4, 2, 6),
  PerHeadNorm(),
  FullWidthNorm(),
  LatentAttention(num_heads=4, kv_rank=6, nope_dim=4, rope_dim=2, v_dim=5),
  MLP(24),
  GLU(24),
  ClampedGLU(24),
  MixtureOfExperts(num_experts=4, top_k=2, expert=GLU(12)),
  SoftmaxRouter(),
  SigmoidRouter(groups=2, top_groups=2),
  LayerNorm(),
  RMSNorm(),
  ZeroCenteredRMSNorm(),
  LearnedPositions(32),
  SinusoidalPositions(),
  RoPE(),
  NoPositions(),
  LinearScaling(2.0),
  NTKScaling(2.0),
  Llama3Scaling(),
  YaRNScaling(2.0, 16),
  LongRoPEScaling((1.0, 1.5, 2.0), (1.0, 2.0, 4.0), 4.0, 16),
  NormalInit(),
)}


class Other(NamedTuple):
  """Another value of a field; and why the picture is the same with it ('' where it must be another)."""
  value: Any
  unseen: str = ''


TRAINING = 'it only changes how the model is trained'
DETAIL = 'a detail of the computation that the picture leaves out'
EPS = Other(1e-3, DETAIL)

# For every field of every part: another value. A new field needs a line here.
OTHERS: dict[type, dict[str, Other]] = {
  Architecture: {
    'vocab_size': Other(48),
    'd_model': Other(32),
    'num_layers': Other(6),
    'pattern': Other((Block(Attention(2), MLP(), LayerNorm()), Block(Attention(4, 1, 8), GLU(8), RMSNorm()))),
    'positions': Other(LearnedPositions(20)),
    'norm': Other(LayerNorm()),
    'tied_head': Other(False),
    'prefix': Other((Block(Attention(2), MLP(20), LayerNorm()),)),
    'dropout': Other(0.1, TRAINING),
    'init': Other(NormalInit(0.1), TRAINING),
    'embedding_scale': Other(4.0),
    'logit_soft_cap': Other(30.0),
    'multi_token': Other((Block(Attention(2), MixtureOfExperts(4, 2, GLU(12)), LayerNorm()),)),
    'family': Other('mistral', 'a name for export'),
  },
  **{block: {
    'attention': Other(LatentAttention(4, 6, 4, 2, 5)),
    'feed_forward': Other(MLP(20)),
    'norm': Other(LayerNorm()),
  } for block in (Block, PostNormBlock, SandwichBlock, OutputNormBlock, ParallelBlock)},
  Attention: {
    'num_heads': Other(6),
    'num_kv_heads': Other(1),
    'head_dim': Other(8),
    'bias': Other(True),
    'out_bias': Other(True),
    'window': Other(8),
    'soft_cap': Other(50.0),
    'scale': Other(0.5, DETAIL),
    'qk_norm': Other(PerHeadNorm()),
    'positions': Other(NoPositions()),
    'rotary_dim': Other(4),
    'sinks': Other(True),
  },
  **{qk_norm: {'norm': Other(LayerNorm(), DETAIL)} for qk_norm in (PerHeadNorm, FullWidthNorm)},
  LatentAttention: {
    'num_heads': Other(2),
    'kv_rank': Other(8),
    'nope_dim': Other(6),
    'rope_dim': Other(4),
    'v_dim': Other(7),
    'q_rank': Other(10),
    'norm': Other(LayerNorm(), DETAIL),
    'scale': Other(0.5, DETAIL),
  },
  **{dense: {
    'd_ff': Other(20),
    'activation': Other('relu'),
    'bias': Other(True),
  } for dense in (MLP, GLU)},
  ClampedGLU: {
    'd_ff': Other(20),
    'limit': Other(3.0),
    'alpha': Other(1.0, DETAIL),
    'bias': Other(True),
  },
  MixtureOfExperts: {
    'num_experts': Other(6),
    'top_k': Other(1),
    'expert': Other(MLP(20, bias=True)),
    'router': Other(SigmoidRouter()),
    'shared': Other(GLU(10, bias=True)),
    'capacity_factor': Other(1.5, TRAINING),
  },
  SoftmaxRouter: {
    'balance_weight': Other(0.5, TRAINING),
    'layers_together': Other(True, TRAINING),
    'balance_over': Other('step', TRAINING),
    'in_training': Other(False, TRAINING),
    'bias': Other(True),
    'weights_over': Other('all', DETAIL),
    'z_weight': Other(0.5, TRAINING),
  },
  SigmoidRouter: {
    'groups': Other(4),
    'top_groups': Other(1),
    'scale': Other(2.0, DETAIL),
    'bias_rate': Other(0.5, TRAINING),
    'sequence_balance_weight': Other(0.5, TRAINING),
  },
  **{norm: {'eps': EPS} for norm in (LayerNorm, RMSNorm, ZeroCenteredRMSNorm)},
  LearnedPositions: {'max_length': Other(20)},
  SinusoidalPositions: {'base': Other(500.0)},
  RoPE: {
    'theta': Other(500.0),
    'scaling': Other(LinearScaling(2.0)),
    'max_length': Other(64),
  },
  LinearScaling: {'factor': Other(3.0)},
  NTKScaling: {'factor': Other(3.0)},
  Llama3Scaling: {
    'factor': Other(3.0),
    'low_frequency_factor': Other(2.0, DETAIL),
    'high_frequency_factor': Other(8.0, DETAIL),
    'original_length': Other(64, DETAIL),
  },
  YaRNScaling: {
    'factor': Other(3.0),
    'original_length': Other(64, DETAIL),
    'beta_fast': Other(8.0, DETAIL),
    'beta_slow': Other(2.0, DETAIL),
    'attention_factor': Other(1.5, DETAIL),
    'truncate': Other(False, DETAIL),
  },
  LongRoPEScaling: {
    'short_factors': Other((1.0, 1.0, 3.0), DETAIL),
    'long_factors': Other((1.0, 2.0, 3.0), DETAIL),
    'factor': Other(3.0),
    'original_length': Other(64),
    'attention_factor': Other(1.5, DETAIL),
  },
  NormalInit: {
    'std': Other(0.1, TRAINING),
    'residual_std': Other(0.1, TRAINING),
    'positions_std': Other(0.1, TRAINING),
  },
}


def place(part: Any) -> Architecture:
  """A model that has the part."""
  model, block, experts = EXAMPLES[Architecture], EXAMPLES[Block], EXAMPLES[MixtureOfExperts]
  match part:
    case Architecture():
      return part
    case Block() | PostNormBlock() | SandwichBlock() | OutputNormBlock() | ParallelBlock():
      return dataclasses.replace(model, pattern=(part,))
    case Attention() | LatentAttention():
      return place(dataclasses.replace(block, attention=part))
    case PerHeadNorm() | FullWidthNorm():
      return place(dataclasses.replace(EXAMPLES[Attention], qk_norm=part))
    case MLP() | GLU() | ClampedGLU() | MixtureOfExperts():
      return place(dataclasses.replace(block, feed_forward=part))
    case SoftmaxRouter() | SigmoidRouter():
      return place(dataclasses.replace(experts, router=part))
    case LayerNorm() | RMSNorm() | ZeroCenteredRMSNorm():
      return dataclasses.replace(model, norm=part, pattern=(dataclasses.replace(block, norm=part),))
    case NoPositions():
      return place(dataclasses.replace(EXAMPLES[Attention], positions=part))
    case LearnedPositions() | SinusoidalPositions() | RoPE():
      return dataclasses.replace(model, positions=part)
    case LinearScaling() | NTKScaling() | Llama3Scaling() | YaRNScaling() | LongRoPEScaling():
      return place(RoPE(scaling=part))
    case NormalInit():
      return dataclasses.replace(model, init=part)
  raise AssertionError(f'say here how a model gets a {type(part).__name__}')


def parts_of(annotation: Any) -> set[type]:
  """The dataclasses that a field of this type may hold, and those that their fields may hold."""
  if dataclasses.is_dataclass(annotation):
    below = typing.get_type_hints(annotation).values()
    return {annotation}.union(*map(parts_of, below))
  return set().union(*map(parts_of, typing.get_args(annotation)))


FIELDS = [(part, field.name) for part in sorted(parts_of(Architecture), key=lambda part: part.__name__)
          for field in dataclasses.fields(part)]


# ------------------------------------------------------------------------------------------------ what is counted
def check_counts(config: Architecture) -> None:
  """All counts against the shapes that the modules would make."""
  sizes = {path: math.prod(shape) for path, shape in parameter_shapes(config).items()}
  active = {path: size * active_share(config, path) for path, size in sizes.items()}
  is_mtp = lambda path: path.startswith('multi_token')
  table = config.vocab_size * config.d_model

  assert count_parameters(config) == sum(size for path, size in sizes.items() if not is_mtp(path))
  assert count_multi_token(config) == sum(size for path, size in sizes.items() if is_mtp(path))
  assert count_positions(config) == sizes.get('positions/w', 0)
  assert count_active_parameters(config) == sum(size for path, size in active.items() if not is_mtp(path))
  read_by_index = {'positions/w'} if config.tied_head else {'positions/w', 'embedding/w'}
  multiplied = sum(size for path, size in active.items() if path not in read_by_index)
  assert count_matmul_parameters(config) == multiplied + len(config.multi_token) * table


def active_share(config: Architecture, path: str) -> float:
  """The share of a parameter that one token uses."""
  if '/experts/' not in path:
    return 1
  mixture = named_blocks(config)[path.split('/feed_forward/')[0]].feed_forward
  return mixture.top_k / mixture.num_experts


def check_cache(config: Architecture) -> None:
  """The bytes of keys, values and latents against those of the arrays."""
  cache = jax.eval_shape(lambda: init_cache(config, 2, 12, jnp.bfloat16))
  arrays = jax.tree.leaves((cache.prefix, cache.pattern))
  assert cache_bytes(config, 2, 12, jnp.bfloat16).total == sum(2 * array.size for array in arrays)


def picture(config: Architecture) -> str:
  """The picture without its counts of parameters, which change with nearly every field."""
  return re.sub(r'[\d.]+[KMB]? parameters(, [\d.]+[KMB]? for a token)?', '', draw(config))


# ------------------------------------------------------------------------------------------------ the tests
@pytest.mark.parametrize('part, field', FIELDS, ids=[f'{part.__name__}.{field}' for part, field in FIELDS])
def test_counts_and_picture_follow_every_field(part, field):
  assert part in EXAMPLES, f'add an example of {part.__name__} to EXAMPLES'
  assert field in OTHERS.get(part, {}), f'add another value of {part.__name__}.{field} to OTHERS'
  example, other = EXAMPLES[part], OTHERS[part][field]
  assert getattr(example, field) != other.value, 'the other value must be another one'
  before, after = place(example), place(dataclasses.replace(example, **{field: other.value}))
  for config in (before, after):
    check_counts(config)
    check_cache(config)
  if other.unseen:
    assert picture(after) == picture(before), f'the picture shows {part.__name__}.{field}: OTHERS says that it does not'
  else:
    assert picture(after) != picture(before), f'the picture does not show {part.__name__}.{field}'


def test_the_table_has_no_field_that_is_gone():
  assert {(part, field) for part, fields in OTHERS.items() for field in fields} == set(FIELDS)


def test_a_part_is_found_wherever_it_may_stand():
  """The reflection reaches parts in unions, in tuples, and in parts of parts."""
  assert parts_of(Architecture) == set(EXAMPLES)
