"""The kinds of attention.

`None` in a size means "derived": the docstring gives the formula, and a number overrides it.
"""
import dataclasses

from llm_jax.config.errors import require, require_sizes
from llm_jax.config.model.norms import Norm, RMSNorm
from llm_jax.config.model.positions import NoPositions, RoPE


@dataclasses.dataclass(frozen=True)
class PerHeadNorm:
  """Each query head and each key head is normalised by itself. All query heads share one scale of size head_dim, and
  all key heads another (Qwen3, Yang et al. 2025, section 2; Gemma 3, section 2, with ZeroCenteredRMSNorm).

  norm: its kind.
  """
  norm: Norm = RMSNorm(1e-6)


@dataclasses.dataclass(frozen=True)
class FullWidthNorm:
  """The queries of all heads are normalised together, and so are the keys: one scale of size num_heads x head_dim, and
  one of num_kv_heads x head_dim (OLMo 2, OLMo et al. 2024, section 2.1).

  norm: its kind.
  """
  norm: Norm = RMSNorm(1e-6)


QKNorm = PerHeadNorm | FullWidthNorm


@dataclasses.dataclass(frozen=True)
class Attention:
  """Causal multi-head attention; multi-query and grouped-query by `num_kv_heads`.

  num_heads: query heads.
  num_kv_heads: key and value heads, each shared by as many query heads; None means num_heads.
  head_dim: size of a head; None means d_model / num_heads.
  bias: whether the projections have one.
  out_bias: whether the projection back to the residual stream has one; None means as `bias` says.
  window: a query sees this many positions, its own included; None means all (banded, GPT-3; sliding, Mistral).
  soft_cap: scores become soft_cap tanh(score / soft_cap) (Gemma 2, section 2).
  scale: the factor of q k'; None means 1 / sqrt(head_dim).
  qk_norm: how queries and keys are normalised before rotary positions turn them; None means not at all.
  positions: rotary positions of this layer in place of the model's, or none at all; None means the model's.
  rotary_dim: how many numbers at the beginning of a head rotary positions turn; None means all (GPT-NeoX, Phi-4-mini).
  sinks: whether each query head has a learned score of its own beside those of the keys. It takes weight from them and
    gives nothing, so a head may look at nothing (gpt-oss, OpenAI 2025, section 2.3).
  """
  num_heads: int
  num_kv_heads: int | None = None
  head_dim: int | None = None
  bias: bool = False
  out_bias: bool | None = None
  window: int | None = None
  soft_cap: float | None = None
  scale: float | None = None
  qk_norm: QKNorm | None = None
  positions: RoPE | NoPositions | None = None
  rotary_dim: int | None = None
  sinks: bool = False

  def __post_init__(self):
    require(self.num_heads > 0, 'num_heads', self.num_heads, 'use at least one head')
    require(self.kv_heads > 0 and self.num_heads % self.kv_heads == 0, 'num_kv_heads', self.num_kv_heads,
            f'use a divisor of num_heads={self.num_heads}')
    require(self.window is None or self.window > 0, 'window', self.window, 'use 1 or more, or None for all positions')
    require_sizes(self, 'head_dim', 'soft_cap', 'scale', 'rotary_dim')

  @property
  def kv_heads(self) -> int:
    return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

  @property
  def has_out_bias(self) -> bool:
    return self.bias if self.out_bias is None else self.out_bias

  def head_size(self, d_model: int) -> int:
    return self.head_dim or d_model // self.num_heads

  def rotary_size(self, d_model: int) -> int:
    """The part of a head that rotary positions turn."""
    return self.rotary_dim or self.head_size(d_model)


@dataclasses.dataclass(frozen=True)
class LatentAttention:
  """Multi-head latent attention: keys and values of all heads are made from one compressed vector of `kv_rank`, and one
  rotary key of `rope_dim` is shared by all heads (DeepSeek-V2, section 2.1; DeepSeek-V3, section 2.1.1).

  num_heads: heads of queries, keys and values.
  kv_rank: size of the vector that keys and values are made from.
  nope_dim: size of the part of a head that carries no position.
  rope_dim: size of the part of a head that carries the position.
  v_dim: size of a head's value.
  q_rank: rank of the compressed query; None means queries are projected directly.
  norm: of the compressed vectors.
  scale: what q k' is multiplied by; None means 1 / sqrt(nope_dim + rope_dim).
  """
  num_heads: int
  kv_rank: int
  nope_dim: int
  rope_dim: int
  v_dim: int
  q_rank: int | None = None
  norm: Norm = RMSNorm(1e-6)
  scale: float | None = None

  def __post_init__(self):
    for field in ('num_heads', 'kv_rank', 'nope_dim', 'rope_dim', 'v_dim'):
      require(getattr(self, field) > 0, field, getattr(self, field), 'use a positive integer')
    require_sizes(self, 'q_rank', 'scale')

  def rotary_size(self, d_model: int) -> int:
    """The part of a head that rotary positions turn."""
    del d_model
    return self.rope_dim


AnyAttention = Attention | LatentAttention
