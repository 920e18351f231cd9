"""What a decoder is made of. Variants are types: one class per idea, no flags.

`None` in a size means "derived": the docstring gives the formula, and a number overrides it.
"""
import dataclasses
import math

from llm_jax.config.errors import require

ACTIVATIONS = ('gelu_tanh', 'gelu', 'silu', 'relu')


@dataclasses.dataclass(frozen=True)
class LayerNorm:
  """Ba et al. 2016, with scale and bias."""
  eps: float = 1e-5


@dataclasses.dataclass(frozen=True)
class RMSNorm:
  """Zhang & Sennrich 2019, with scale."""
  eps: float = 1e-5


Norm = LayerNorm | RMSNorm


@dataclasses.dataclass(frozen=True)
class LearnedPositions:
  """A table of `max_length` vectors added to the embeddings (GPT-2)."""
  max_length: int

  def __post_init__(self):
    require(self.max_length > 0, 'max_length', self.max_length, 'use a positive length')


@dataclasses.dataclass(frozen=True)
class RoPE:
  """Rotary positions (Su et al. 2021), half-split layout as in Hugging Face; phases are float32."""
  base: float = 10_000.0

  def __post_init__(self):
    require(self.base > 1, 'base', self.base, 'use a base above 1, such as 10000')


Positions = LearnedPositions | RoPE


@dataclasses.dataclass(frozen=True)
class Attention:
  """Causal multi-head attention; multi-query and grouped-query by `num_kv_heads`.

  head_dim: None means d_model / num_heads.   num_kv_heads: None means num_heads.
  """
  num_heads: int
  num_kv_heads: int | None = None
  head_dim: int | None = None
  bias: bool = False

  def __post_init__(self):
    require(self.num_heads > 0, 'num_heads', self.num_heads, 'use at least one head')
    require(self.kv_heads > 0 and self.num_heads % self.kv_heads == 0, 'num_kv_heads', self.num_kv_heads,
            f'use a divisor of num_heads={self.num_heads}')

  @property
  def kv_heads(self) -> int:
    return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

  def head_size(self, d_model: int) -> int:
    return self.head_dim or d_model // self.num_heads


@dataclasses.dataclass(frozen=True)
class MLP:
  """up, activation, down.   d_ff: None means 4 d_model (Vaswani et al. 2017, section 3.3)."""
  d_ff: int | None = None
  activation: str = 'gelu_tanh'
  bias: bool = False

  def __post_init__(self):
    require(self.activation in ACTIVATIONS, 'activation', self.activation, f'use one of {ACTIVATIONS}')

  def width(self, d_model: int) -> int:
    return self.d_ff or 4 * d_model


@dataclasses.dataclass(frozen=True)
class GLU:
  """down(activation(gate) * up), Shazeer 2020; SwiGLU with silu.

  d_ff: None means 8/3 d_model rounded up to a multiple of 256 (LLaMA, section 2.2 and its code).
  """
  d_ff: int | None = None
  activation: str = 'silu'
  bias: bool = False

  def __post_init__(self):
    require(self.activation in ACTIVATIONS, 'activation', self.activation, f'use one of {ACTIVATIONS}')

  def width(self, d_model: int) -> int:
    return self.d_ff or 256 * math.ceil(8 * d_model / 3 / 256)


FeedForward = MLP | GLU


@dataclasses.dataclass(frozen=True)
class Block:
  """x + attention(norm(x)), then x + feed_forward(norm(x))."""
  attention: Attention
  feed_forward: FeedForward
  norm: Norm


@dataclasses.dataclass(frozen=True)
class NormalInit:
  """Normal initialisation as GPT-2 states it (section 2.3): std 0.02, and the projections that write to the residual
  stream scaled by 1/sqrt(2 num_layers). LLaMA's papers state none; it is used there too.

  residual_std: None means std / sqrt(2 num_layers).
  """
  std: float = 0.02
  residual_std: float | None = None
  positions_std: float = 0.01


@dataclasses.dataclass(frozen=True)
class Architecture:
  """A decoder: `prefix` blocks once, then `pattern` repeated until there are `num_layers`."""
  vocab_size: int
  d_model: int
  num_layers: int
  pattern: tuple[Block, ...]
  positions: Positions
  norm: Norm
  tied_head: bool
  prefix: tuple[Block, ...] = ()
  dropout: float = 0.0
  init: NormalInit = NormalInit()

  def __post_init__(self):
    for field in ('vocab_size', 'd_model', 'num_layers'):
      require(getattr(self, field) > 0, field, getattr(self, field), 'use a positive integer')
    require(len(self.pattern) > 0, 'pattern', self.pattern, 'give at least one block')
    rest = self.num_layers - len(self.prefix)
    require(rest >= 0 and rest % len(self.pattern) == 0, 'num_layers', self.num_layers,
            f'must be len(prefix)={len(self.prefix)} plus a multiple of len(pattern)={len(self.pattern)}')
    require(0 <= self.dropout < 1, 'dropout', self.dropout, 'use a probability in [0, 1)')
    for group in ('prefix', 'pattern'):
      for i, block in enumerate(getattr(self, group)):
        attention, where = block.attention, f'{group}[{i}].attention'
        require(attention.head_dim is not None or self.d_model % attention.num_heads == 0, f'{where}.num_heads',
                attention.num_heads, f'use a divisor of d_model={self.d_model}, or set head_dim')
        require(not isinstance(self.positions, RoPE) or attention.head_size(self.d_model) % 2 == 0,
                f'{where}.head_dim', attention.head_size(self.d_model), 'rotary positions need an even head size')

  @property
  def repeats(self) -> int:
    """How often `pattern` runs."""
    return (self.num_layers - len(self.prefix)) // len(self.pattern)

  @property
  def max_length(self) -> int | None:
    """The longest context that the positions allow; None means any."""
    return self.positions.max_length if isinstance(self.positions, LearnedPositions) else None
