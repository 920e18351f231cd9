"""A whole decoder: its blocks and their order.

What blocks are made of is in `attention.py`, `feed_forward.py`, `norms.py` and `positions.py`; import it from here.
"""
import dataclasses
from collections.abc import Callable
from typing import Any

from llm_jax.config.errors import require
from llm_jax.config.model.attention import AnyAttention, Attention, LatentAttention
from llm_jax.config.model.feed_forward import (
  ACTIVATIONS,
  GLU,
  MLP,
  ClampedGLU,
  Dense,
  FeedForward,
  MixtureOfExperts,
  Router,
  SigmoidRouter,
  SoftmaxRouter,
)
from llm_jax.config.model.norms import LayerNorm, Norm, RMSNorm, ZeroCenteredRMSNorm
from llm_jax.config.model.positions import (
  LearnedPositions,
  LinearScaling,
  Llama3Scaling,
  LongRoPEScaling,
  NoPositions,
  NTKScaling,
  Positions,
  RoPE,
  Scaling,
  SinusoidalPositions,
  YaRNScaling,
)

__all__ = [
  'ACTIVATIONS', 'AnyAttention', 'AnyBlock', 'Architecture', 'Attention', 'Block', 'ClampedGLU', 'Dense', 'FeedForward',
  'GLU', 'LatentAttention', 'LayerNorm', 'LearnedPositions', 'LinearScaling', 'Llama3Scaling', 'LongRoPEScaling', 'MLP',
  'MixtureOfExperts', 'NTKScaling', 'NoPositions', 'Norm', 'NormalInit', 'OutputNormBlock', 'ParallelBlock',
  'Positions', 'PostNormBlock', 'RMSNorm', 'RoPE', 'Router', 'SandwichBlock', 'Scaling', 'SigmoidRouter',
  'SinusoidalPositions', 'SoftmaxRouter', 'YaRNScaling', 'ZeroCenteredRMSNorm',
]


@dataclasses.dataclass(frozen=True)
class Block:
  """x + attention(norm(x)), then x + feed_forward(norm(x)): pre-norm.

  attention: how tokens read each other.
  feed_forward: what each token passes through.
  norm: the kind of normalisation.
  """
  attention: AnyAttention
  feed_forward: FeedForward
  norm: Norm


@dataclasses.dataclass(frozen=True)
class PostNormBlock:
  """norm(x + attention(x)), then norm(x + feed_forward(x)) (Vaswani et al. 2017, GPT-1).

  attention: how tokens read each other.
  feed_forward: what each token passes through.
  norm: the kind of normalisation.
  """
  attention: AnyAttention
  feed_forward: FeedForward
  norm: Norm


@dataclasses.dataclass(frozen=True)
class SandwichBlock:
  """x + norm(attention(norm(x))), then x + norm(feed_forward(norm(x))) (Gemma 2).

  attention: how tokens read each other.
  feed_forward: what each token passes through.
  norm: the kind of normalisation.
  """
  attention: AnyAttention
  feed_forward: FeedForward
  norm: Norm


@dataclasses.dataclass(frozen=True)
class OutputNormBlock:
  """x + norm(attention(x)), then x + norm(feed_forward(x)): norms on
  outputs alone (OLMo 2, OLMo et al. 2024, section 2.1).

  attention: how tokens read each other.
  feed_forward: what each token passes through.
  norm: the kind of normalisation.
  """
  attention: AnyAttention
  feed_forward: FeedForward
  norm: Norm


@dataclasses.dataclass(frozen=True)
class ParallelBlock:
  """x + attention(norm(x)) + feed_forward(norm(x)), each with a norm of its own: both read the block's input (GPT-NeoX,
  Black et al. 2022, section 2.1.2).

  attention: how tokens read each other.
  feed_forward: what each token passes through.
  norm: the kind of normalisation.
  """
  attention: AnyAttention
  feed_forward: FeedForward
  norm: Norm


AnyBlock = Block | PostNormBlock | SandwichBlock | OutputNormBlock | ParallelBlock


@dataclasses.dataclass(frozen=True)
class NormalInit:
  """Normal initialisation as GPT-2 states it (section 2.3): std 0.02, and the projections that write to the residual
  stream scaled by 1/sqrt(2 num_layers). LLaMA's papers state none; it is used there too.

  std: standard deviation of the matrices.
  residual_std: standard deviation of the projections to the residual stream; None means std / sqrt(2 num_layers).
  positions_std: standard deviation of learned positions.
  """
  std: float = 0.02
  residual_std: float | None = None
  positions_std: float = 0.01

  def __post_init__(self):
    for field in ('std', 'residual_std', 'positions_std'):
      value = getattr(self, field)
      require(value is None or value >= 0, field, value, 'use 0 or more')


@dataclasses.dataclass(frozen=True)
class Architecture:
  """A decoder: `prefix` blocks once, then `pattern` repeated until there are `num_layers`.

  vocab_size: rows of the embedding.
  d_model: width of the residual stream.
  num_layers: blocks, those of `prefix` included.
  pattern: blocks that repeat.
  positions: how a token's place enters.
  norm: the normalisation after the last block; None means none (GPT-1, whose blocks end in one).
  tied_head: whether logits are made with the embedding.
  prefix: blocks before those that repeat.
  dropout: probability that a number of the residual stream is left out in training.
  init: distribution of the fresh parameters.
  embedding_scale: what token embeddings are multiplied by (sqrt(d_model) in Vaswani et al. 2017 and Gemma).
  logit_soft_cap: logits become cap tanh(logits / cap) (Gemma 2, section 2).
  multi_token: blocks that predict one token further each (DeepSeek-V3, section 2.2). They are used in training and to
    draft while decoding, and are not among the `num_layers`.
  family: the name to export it by where two families compute the same ('mistral'); None: what it looks like.
  """
  vocab_size: int
  d_model: int
  num_layers: int
  pattern: tuple[AnyBlock, ...]
  positions: Positions
  norm: Norm | None
  tied_head: bool
  prefix: tuple[AnyBlock, ...] = ()
  dropout: float = 0.0
  init: NormalInit = NormalInit()
  embedding_scale: float = 1.0
  logit_soft_cap: float | None = None
  multi_token: tuple[AnyBlock, ...] = ()
  family: str | None = None

  def __post_init__(self):
    for field in ('vocab_size', 'd_model', 'num_layers'):
      require(getattr(self, field) > 0, field, getattr(self, field), 'use a positive integer')
    require(len(self.pattern) > 0, 'pattern', self.pattern, 'give at least one block')
    rest = self.num_layers - len(self.prefix)
    require(rest >= 0 and rest % len(self.pattern) == 0, 'num_layers', self.num_layers,
            f'must be len(prefix)={len(self.prefix)} plus a multiple of len(pattern)={len(self.pattern)}')
    require(0 <= self.dropout < 1, 'dropout', self.dropout, 'use a probability in [0, 1)')
    require(self.embedding_scale > 0, 'embedding_scale', self.embedding_scale, 'use a positive number')
    require(self.logit_soft_cap is None or self.logit_soft_cap > 0, 'logit_soft_cap', self.logit_soft_cap,
            'use a positive number, or None')
    for group in ('prefix', 'pattern', 'multi_token'):
      for i, block in enumerate(getattr(self, group)):
        self._check_attention(block.attention, f'{group}[{i}].attention')

  def _check_attention(self, attention: AnyAttention, where: str) -> None:
    rope = self.rope_of(attention)
    rotary = rope is not None
    ntk = rope is not None and isinstance(rope.scaling, NTKScaling)
    if isinstance(attention, Attention):
      require(attention.head_dim is not None or self.d_model % attention.num_heads == 0, f'{where}.num_heads',
              attention.num_heads, f'use a divisor of d_model={self.d_model}, or set head_dim')
      require(attention.positions is None or isinstance(self.positions, RoPE), f'{where}.positions',
              attention.positions, 'they stand in place of rotary positions: use positions=RoPE(...) for the model')
    else:
      require(rotary, f'{where}', 'LatentAttention', 'it needs rotary positions: use positions=RoPE(...)')
    size = attention.rotary_size(self.d_model)
    field = 'rope_dim'
    if isinstance(attention, Attention):
      field = 'head_dim' if attention.rotary_dim is None else 'rotary_dim'
    require(not rotary or size % 2 == 0, f'{where}.{field}', size, 'rotary positions need an even size')
    require(not ntk or size > 2, f'{where}.{field}', size, 'NTKScaling needs a size above 2')
    if isinstance(attention, Attention) and attention.rotary_dim is not None:
      head_size = attention.head_size(self.d_model)
      require(size <= head_size, f'{where}.rotary_dim', size, f'use at most the head size, {head_size}')
      require(rotary, f'{where}.rotary_dim', size, 'nothing turns queries and keys here: use None')
    if rope is not None and isinstance(rope.scaling, LongRoPEScaling):
      pairs, factors = size // 2, len(rope.scaling.short_factors)
      require(factors == pairs, f'{where}.{field}', size,
              f'it has {pairs} pairs of numbers to turn, and LongRoPEScaling has {factors} factors: give as many')

  def rope_of(self, attention: AnyAttention) -> RoPE | None:
    """The rotary positions that turn queries and keys of a layer; None where nothing does."""
    own = attention.positions if isinstance(attention, Attention) else None
    positions = self.positions if own is None else own
    return positions if isinstance(positions, RoPE) else None

  @property
  def switch_lengths(self) -> tuple[int, ...]:
    """The lengths of sequences beyond which rotary positions turn otherwise (LongRoPEScaling), in order."""
    ropes = [self.rope_of(block.attention) for block in (*self.prefix, *self.pattern, *self.multi_token)]
    found = {rope.switch_length for rope in ropes if rope is not None}
    return tuple(sorted(length for length in found if length is not None))

  def at_length(self, length: int) -> 'Architecture':
    """The decoder that sequences of so many tokens see, for sequences of any length."""
    if not self.switch_lengths:
      return self

    def settle(block: AnyBlock) -> AnyBlock:
      attention = block.attention
      if not isinstance(attention, Attention) or not isinstance(attention.positions, RoPE):
        return block
      positions = attention.positions.at_length(length)
      return dataclasses.replace(block, attention=dataclasses.replace(attention, positions=positions))

    positions = self.positions.at_length(length) if isinstance(self.positions, RoPE) else self.positions
    return self._with_blocks(settle, positions=positions)

  def _with_blocks(self, change: Callable[[AnyBlock], AnyBlock], **changes: Any) -> 'Architecture':
    groups = {name: tuple(map(change, getattr(self, name))) for name in ('prefix', 'pattern', 'multi_token')}
    return dataclasses.replace(self, **groups, **changes)

  @property
  def repeats(self) -> int:
    """How often `pattern` runs."""
    return (self.num_layers - len(self.prefix)) // len(self.pattern)

  @property
  def depends_on_microbatches(self) -> bool:
    """Whether it matters how a batch is cut into microbatches: each draws its own dropout, and a `SoftmaxRouter` may
    balance the experts over one."""
    blocks = (*self.prefix, *self.pattern, *self.multi_token)
    mixtures = [block.feed_forward for block in blocks if isinstance(block.feed_forward, MixtureOfExperts)]
    return self.dropout > 0 or any(
      isinstance(mixture.router, SoftmaxRouter) and mixture.router.balance_over == 'microbatch' for mixture in mixtures)

  @property
  def as_trained(self) -> 'Architecture':
    """The same model with routers that add no loss where they are not `in_training`."""
    def trained(block: AnyBlock) -> AnyBlock:
      mixture = block.feed_forward
      if not isinstance(mixture, MixtureOfExperts) or not isinstance(mixture.router, SoftmaxRouter):
        return block
      if mixture.router.in_training:
        return block
      router = dataclasses.replace(mixture.router, balance_weight=0.0, z_weight=0.0)
      return dataclasses.replace(block, feed_forward=dataclasses.replace(mixture, router=router))

    return self._with_blocks(trained)

  @property
  def meant_length(self) -> int | None:
    """The longest sequence that the positions are meant for, where they say one: a table's rows, or what a rotation was
    trained for."""
    return None if isinstance(self.positions, SinusoidalPositions) else self.positions.max_length

  @property
  def max_length(self) -> int | None:
    """The longest sequence that the positions allow; None means any."""
    return self.positions.max_length if isinstance(self.positions, LearnedPositions) else None
