"""The parts of a decoder's layers. Variants are types: one class per idea, no flags.

`None` in a size means "derived": the docstring gives the formula, and a number overrides it.
"""
import dataclasses
import math

from llm_jax.config.errors import require

ACTIVATIONS = ('gelu_tanh', 'gelu', 'gelu_sigmoid', 'silu', 'relu')


def _check_sizes(part, *fields: str) -> None:
  for field in fields:
    value = getattr(part, field)
    require(value is None or value > 0, field, value, 'use a positive number, or None')


def _check_weights(part, *fields: str) -> None:
  for field in fields:
    require(0 <= getattr(part, field) < math.inf, field, getattr(part, field), 'use a finite number of 0 or more')


# ---------------------------------------------------------------------------------------------- norms
@dataclasses.dataclass(frozen=True)
class LayerNorm:
  """Ba et al. 2016, with scale and bias."""
  eps: float = 1e-5

  def __post_init__(self):
    _check_weights(self, 'eps')


@dataclasses.dataclass(frozen=True)
class RMSNorm:
  """Zhang & Sennrich 2019, with scale."""
  eps: float = 1e-5

  def __post_init__(self):
    _check_weights(self, 'eps')


@dataclasses.dataclass(frozen=True)
class ZeroCenteredRMSNorm:
  """RMSNorm whose stored scale is the difference from 1, so that it starts at 0 (Gemma)."""
  eps: float = 1e-6

  def __post_init__(self):
    _check_weights(self, 'eps')


Norm = LayerNorm | RMSNorm | ZeroCenteredRMSNorm


# ---------------------------------------------------------------------------------------------- positions
@dataclasses.dataclass(frozen=True)
class LearnedPositions:
  """A table of `max_length` vectors added to the embeddings (GPT-1, GPT-2, GPT-3)."""
  max_length: int

  def __post_init__(self):
    require(self.max_length > 0, 'max_length', self.max_length, 'use a positive length')


@dataclasses.dataclass(frozen=True)
class SinusoidalPositions:
  """Sines and cosines of geometric wavelengths added to the embeddings (Vaswani et al. 2017, section 3.5)."""
  base: float = 10_000.0

  def __post_init__(self):
    require(self.base > 1, 'base', self.base, 'use a base above 1, such as 10000')


@dataclasses.dataclass(frozen=True)
class LinearScaling:
  """Positions divided by `factor` (Chen et al. 2023, Position Interpolation)."""
  factor: float

  def __post_init__(self):
    _check_factor(self.factor)


@dataclasses.dataclass(frozen=True)
class NTKScaling:
  """base x factor^(K / (K - 2)) for head size K: low frequencies stretched by `factor`, the highest one not at all
  ("NTK-aware", Peng et al. 2023, YaRN, section 3.1)."""
  factor: float

  def __post_init__(self):
    _check_factor(self.factor)


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
  """Wavelengths beyond original_length / low_frequency_factor stretched by `factor`, those below original_length /
  high_frequency_factor kept, between them a blend (Llama 3.1, Dubey et al. 2024, and its code)."""
  factor: float = 8.0
  low_frequency_factor: float = 1.0
  high_frequency_factor: float = 4.0
  original_length: int = 8_192

  def __post_init__(self):
    _check_factor(self.factor)
    require(self.original_length > 0, 'original_length', self.original_length, 'use a positive length')
    require(0 < self.low_frequency_factor < self.high_frequency_factor, 'high_frequency_factor',
            self.high_frequency_factor, f'use more than low_frequency_factor={self.low_frequency_factor} > 0')


@dataclasses.dataclass(frozen=True)
class YaRNScaling:
  """Dimensions that turn less than `beta_slow` times in original_length stretched by `factor`, those that turn more
  than `beta_fast` times kept, a ramp between (Peng et al. 2023, YaRN, sections 3.2 and 3.3).

  attention_factor: what cosines and sines are multiplied by; None means 0.1 ln(factor) + 1 (their equation 22).
  """
  factor: float
  original_length: int
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  attention_factor: float | None = None

  def __post_init__(self):
    _check_factor(self.factor)
    require(self.original_length > 0, 'original_length', self.original_length, 'use a positive length')
    require(0 < self.beta_slow < self.beta_fast, 'beta_fast', self.beta_fast,
            f'use more than beta_slow={self.beta_slow} > 0')
    _check_sizes(self, 'attention_factor')

  @property
  def magnitude(self) -> float:
    if self.attention_factor is not None:
      return self.attention_factor
    return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


def _check_factor(factor: float) -> None:
  require(factor >= 1, 'factor', factor, 'use 1 or more: how many times longer the context becomes')


Scaling = LinearScaling | NTKScaling | Llama3Scaling | YaRNScaling


@dataclasses.dataclass(frozen=True)
class RoPE:
  """Rotary positions (Su et al. 2021), half-split layout as in Hugging Face; phases are float32.

  scaling: how the rotation is stretched to contexts longer than those trained on.
  max_length: the context that the model is meant for. It goes into exported files; nothing is computed from it.
  """
  base: float = 10_000.0
  scaling: Scaling | None = None
  max_length: int | None = None

  def __post_init__(self):
    require(self.base > 1, 'base', self.base, 'use a base above 1, such as 10000')
    require(self.max_length is None or self.max_length > 0, 'max_length', self.max_length, 'use a positive length')


Positions = LearnedPositions | SinusoidalPositions | RoPE


# ---------------------------------------------------------------------------------------------- attention
@dataclasses.dataclass(frozen=True)
class Attention:
  """Causal multi-head attention; multi-query and grouped-query by `num_kv_heads`.

  head_dim: None means d_model / num_heads.   num_kv_heads: None means num_heads.
  window: a query sees this many positions, its own included (banded, GPT-3; sliding, Mistral); None means all.
  soft_cap: scores become soft_cap tanh(score / soft_cap) (Gemma 2, section 2).
  scale: what q k' is multiplied by; None means 1 / sqrt(head_dim).
  """
  num_heads: int
  num_kv_heads: int | None = None
  head_dim: int | None = None
  bias: bool = False
  window: int | None = None
  soft_cap: float | None = None
  scale: float | None = None

  def __post_init__(self):
    require(self.num_heads > 0, 'num_heads', self.num_heads, 'use at least one head')
    require(self.kv_heads > 0 and self.num_heads % self.kv_heads == 0, 'num_kv_heads', self.num_kv_heads,
            f'use a divisor of num_heads={self.num_heads}')
    require(self.window is None or self.window > 0, 'window', self.window, 'use 1 or more, or None for all positions')
    _check_sizes(self, 'head_dim', 'soft_cap', 'scale')

  @property
  def kv_heads(self) -> int:
    return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

  def head_size(self, d_model: int) -> int:
    return self.head_dim or d_model // self.num_heads

  def rotary_size(self, d_model: int) -> int:
    """The part of a head that rotary positions turn."""
    return self.head_size(d_model)


@dataclasses.dataclass(frozen=True)
class LatentAttention:
  """Multi-head latent attention: keys and values of all heads are made from one compressed vector of `kv_rank`, and one
  rotary key of `rope_dim` is shared by all heads (DeepSeek-V2, section 2.1; DeepSeek-V3, section 2.1.1).

  nope_dim: size of the part of a head that carries no position.   v_dim: size of a head's value.
  q_rank: rank of the compressed query; None means queries are projected directly.
  norm: of the compressed vectors.   scale: None means 1 / sqrt(nope_dim + rope_dim).
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
    _check_sizes(self, 'q_rank', 'scale')

  def rotary_size(self, d_model: int) -> int:
    """The part of a head that rotary positions turn."""
    del d_model
    return self.rope_dim


AnyAttention = Attention | LatentAttention


# ---------------------------------------------------------------------------------------------- feed-forward
@dataclasses.dataclass(frozen=True)
class MLP:
  """up, activation, down.   d_ff: None means 4 d_model (Vaswani et al. 2017, section 3.3)."""
  d_ff: int | None = None
  activation: str = 'gelu_tanh'
  bias: bool = False

  def __post_init__(self):
    require(self.activation in ACTIVATIONS, 'activation', self.activation, f'use one of {ACTIVATIONS}')
    _check_sizes(self, 'd_ff')

  def width(self, d_model: int) -> int:
    return self.d_ff or 4 * d_model


@dataclasses.dataclass(frozen=True)
class GLU:
  """down(activation(gate) * up), Shazeer 2020; SwiGLU with silu, GeGLU with gelu.

  d_ff: None means 8/3 d_model rounded up to a multiple of 256 (LLaMA, section 2.2 and its code).
  """
  d_ff: int | None = None
  activation: str = 'silu'
  bias: bool = False

  def __post_init__(self):
    require(self.activation in ACTIVATIONS, 'activation', self.activation, f'use one of {ACTIVATIONS}')
    _check_sizes(self, 'd_ff')

  def width(self, d_model: int) -> int:
    return self.d_ff or 256 * math.ceil(8 * d_model / 3 / 256)


@dataclasses.dataclass(frozen=True)
class SoftmaxRouter:
  """The top_k experts of softmax(router x), weighted by their probabilities over the chosen (Mixtral, section 2.1).

  balance_weight: of the load-balancing loss (Fedus et al. 2021, Switch Transformers, equations 4 to 6).
  z_weight: of the mean squared log-sum-exp of the router's logits (Zoph et al. 2022, ST-MoE, equation 5).
  """
  balance_weight: float = 0.01
  z_weight: float = 0.0

  def __post_init__(self):
    _check_weights(self, 'balance_weight', 'z_weight')


@dataclasses.dataclass(frozen=True)
class SigmoidRouter:
  """The top_k experts of sigmoid(router x) + bias, weighted by their sigmoids normalised over the chosen; the bias only
  chooses, and moves by `bias_rate` a step against the load (DeepSeek-V3, sections 2.1.2 and 4.2).

  groups, top_groups: experts stand in `groups` groups (nodes), and a token chooses among those of its `top_groups`
    best, a group's score being the sum of its two best experts' (node-limited routing).
  scale: the weights of the chosen are multiplied by it (`routed_scaling_factor`).
  sequence_balance_weight: of the balance loss within each sequence (their equation 17).
  """
  groups: int = 1
  top_groups: int = 1
  scale: float = 1.0
  bias_rate: float = 1e-3
  sequence_balance_weight: float = 1e-4

  def __post_init__(self):
    require(self.groups > 0, 'groups', self.groups, 'use 1 or more')
    require(0 < self.top_groups <= self.groups, 'top_groups', self.top_groups, f'use 1 to groups={self.groups}')
    _check_sizes(self, 'scale')
    _check_weights(self, 'bias_rate', 'sequence_balance_weight')


Router = SoftmaxRouter | SigmoidRouter


@dataclasses.dataclass(frozen=True)
class MixtureOfExperts:
  """Each token is served by `top_k` of `num_experts` experts that the router chooses, and by the shared one, if any.

  expert: one routed expert.   shared: None, or what every token passes through (n shared experts of width F are one of
    width n F).
  capacity_factor: None drops no token; else an expert takes at most capacity_factor x tokens x top_k / num_experts
    tokens of each sequence and the rest pass it by (Switch Transformers, equation 3). Generation drops none.
  """
  num_experts: int
  top_k: int
  expert: MLP | GLU
  router: Router = SoftmaxRouter()
  shared: MLP | GLU | None = None
  capacity_factor: float | None = None

  def __post_init__(self):
    require(self.num_experts > 0, 'num_experts', self.num_experts, 'use a positive integer')
    require(0 < self.top_k <= self.num_experts, 'top_k', self.top_k, f'use 1 to num_experts={self.num_experts}')
    require(not self.expert.bias, 'expert.bias', self.expert.bias, 'routed experts have none: use False')
    require(self.capacity_factor is None or self.capacity_factor > 0, 'capacity_factor', self.capacity_factor,
            'use a positive number, or None to drop no token')
    if isinstance(self.router, SigmoidRouter):
      groups, top = self.router.groups, self.router.top_groups
      require(self.num_experts % groups == 0, 'router.groups', groups,
              f'use a divisor of num_experts={self.num_experts}')
      reachable = top * (self.num_experts // groups)
      require(self.top_k <= reachable, 'top_k', self.top_k, f'{top} of {groups} groups hold only {reachable} experts')


FeedForward = MLP | GLU | MixtureOfExperts


# ---------------------------------------------------------------------------------------------- blocks
@dataclasses.dataclass(frozen=True)
class Block:
  """x + attention(norm(x)), then x + feed_forward(norm(x)): pre-norm."""
  attention: AnyAttention
  feed_forward: FeedForward
  norm: Norm


@dataclasses.dataclass(frozen=True)
class PostNormBlock:
  """norm(x + attention(x)), then norm(x + feed_forward(x)) (Vaswani et al. 2017, GPT-1)."""
  attention: AnyAttention
  feed_forward: FeedForward
  norm: Norm


@dataclasses.dataclass(frozen=True)
class SandwichBlock:
  """x + norm(attention(norm(x))), then x + norm(feed_forward(norm(x))) (Gemma 2)."""
  attention: AnyAttention
  feed_forward: FeedForward
  norm: Norm


AnyBlock = Block | PostNormBlock | SandwichBlock
