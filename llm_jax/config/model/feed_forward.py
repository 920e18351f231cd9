"""The kinds of feed-forward: dense ones, and mixtures of experts with their routers.

`None` in a size means "derived": the docstring gives the formula, and a number overrides it.
"""
import dataclasses
import math

from llm_jax.config.errors import require, require_sizes, require_weights

ACTIVATIONS = ('gelu_tanh', 'gelu', 'gelu_sigmoid', 'silu', 'relu')


@dataclasses.dataclass(frozen=True)
class MLP:
  """up, activation, down (Vaswani et al. 2017, section 3.3).

  d_ff: width between up and down; None means 4 d_model.
  activation: 'gelu_tanh', 'gelu', 'gelu_sigmoid', 'silu' or 'relu'.
  bias: whether the projections have one.
  """
  d_ff: int | None = None
  activation: str = 'gelu_tanh'
  bias: bool = False

  def __post_init__(self):
    require(self.activation in ACTIVATIONS, 'activation', self.activation, f'use one of {ACTIVATIONS}')
    require_sizes(self, 'd_ff')

  def width(self, d_model: int) -> int:
    return self.d_ff or 4 * d_model


@dataclasses.dataclass(frozen=True)
class GLU:
  """down(activation(gate) * up), Shazeer 2020; SwiGLU with silu, GeGLU with gelu.

  d_ff: width before down; None means 8/3 d_model rounded up to a multiple of 256 (LLaMA, section 2.2 and its code).
  activation: 'gelu_tanh', 'gelu', 'gelu_sigmoid', 'silu' or 'relu'.
  bias: whether the projections have one.
  """
  d_ff: int | None = None
  activation: str = 'silu'
  bias: bool = False

  def __post_init__(self):
    require(self.activation in ACTIVATIONS, 'activation', self.activation, f'use one of {ACTIVATIONS}')
    require_sizes(self, 'd_ff')

  def width(self, d_model: int) -> int:
    return self.d_ff or 256 * math.ceil(8 * d_model / 3 / 256)


@dataclasses.dataclass(frozen=True)
class ClampedGLU:
  """down((up + 1) * gate * sigmoid(alpha gate)), with gate at most `limit` and up between -limit and limit: the SwiGLU
  of gpt-oss (OpenAI 2025, section 2.2, and its code).

  d_ff: width before down; None means 8/3 d_model rounded up to a multiple of 256, as in `GLU`.
  limit: where gate and up are cut.
  alpha: factor inside of the sigmoid; with 1.702 it is close to GELU's.
  bias: whether the projections have one.
  """
  d_ff: int | None = None
  limit: float = 7.0
  alpha: float = 1.702
  bias: bool = False

  def __post_init__(self):
    require_sizes(self, 'd_ff', 'limit', 'alpha')

  def width(self, d_model: int) -> int:
    return self.d_ff or 256 * math.ceil(8 * d_model / 3 / 256)


Dense = MLP | GLU | ClampedGLU


@dataclasses.dataclass(frozen=True)
class SoftmaxRouter:
  """The top_k experts of softmax(router x), weighted by their probabilities (Mixtral, section 2.1).

  balance_weight: weight of the load-balancing loss (Fedus et al. 2021, Switch Transformers, equations 4 to 6).
  z_weight: weight of the mean squared log-sum-exp of the router's logits (Zoph et al. 2022, ST-MoE, equation 5).
  layers_together: whether the balance loss is one over the tokens of all layers, not a sum over the layers.
  balance_over: the tokens that the balance loss is about: 'microbatch', or 'step' for all that a step learns from.
  in_training: whether a run adds the router's losses; an objective that is called directly always does.
  bias: whether the router's map has one.
  weights_over: the experts whose weights sum to 1: 'chosen', or 'all', so that a weight is the probability itself.

  Together, experts may be used unevenly in a layer where other layers make up for it. That is what a Mixtral's
  `router_aux_loss_coef` means to Hugging Face's `transformers`; a sum over n layers counts the weight n times.
  Over a 'step' experts may specialise within a microbatch, and the number of microbatches does not change the gradient
  (Qiu et al. 2025, Demons in the Detail). With several microbatches that costs one more forward pass.
  `in_training` is False for an imported model whose file says `output_router_logits: false`.
  """
  balance_weight: float = 0.01
  z_weight: float = 0.0
  layers_together: bool = False
  balance_over: str = 'microbatch'
  in_training: bool = True
  bias: bool = False
  weights_over: str = 'chosen'

  def __post_init__(self):
    require_weights(self, 'balance_weight', 'z_weight')
    require(self.balance_over in ('microbatch', 'step'), 'balance_over', self.balance_over,
            "use 'microbatch' or 'step'")
    require(self.weights_over in ('chosen', 'all'), 'weights_over', self.weights_over, "use 'chosen' or 'all'")

  @property
  def balances_alone(self) -> bool:
    """Whether a layer needs nothing but its own microbatch for its balance loss."""
    return not self.layers_together and self.balance_over == 'microbatch'


@dataclasses.dataclass(frozen=True)
class SigmoidRouter:
  """The top_k experts of sigmoid(router x) + bias, weighted by their sigmoids normalised over the chosen. The bias is
  used for the choice only; after each step it moves by `bias_rate` towards equal loads (DeepSeek-V3, sections 2.1.2 and
  4.2).

  groups: groups (nodes) into which the experts are divided.
  top_groups: how many of them a token chooses among. A group's score is the sum of its two best experts' (node-limited
    routing).
  scale: the weights of the chosen are multiplied by it (`routed_scaling_factor`).
  bias_rate: how far an expert's bias moves in a step.
  sequence_balance_weight: weight of the balance loss within each sequence (their equation 17).
  """
  groups: int = 1
  top_groups: int = 1
  scale: float = 1.0
  bias_rate: float = 1e-3
  sequence_balance_weight: float = 1e-4

  def __post_init__(self):
    require(self.groups > 0, 'groups', self.groups, 'use 1 or more')
    require(0 < self.top_groups <= self.groups, 'top_groups', self.top_groups, f'use 1 to groups={self.groups}')
    require_sizes(self, 'scale')
    require_weights(self, 'bias_rate', 'sequence_balance_weight')


Router = SoftmaxRouter | SigmoidRouter


@dataclasses.dataclass(frozen=True)
class MixtureOfExperts:
  """The router chooses `top_k` of `num_experts` experts for each token; a shared expert, if any, takes all tokens.

  num_experts: experts that the router chooses from.
  top_k: experts that are chosen for each token.
  expert: one routed expert.
  router: how experts are chosen.
  shared: what every token passes through, or None. n shared experts of width F are one of width n F.
  capacity_factor: how many tokens an expert takes; None drops none. Else an expert takes at most capacity_factor x
    tokens x top_k / num_experts tokens of each sequence and the rest pass it by (Switch Transformers, equation 3).
    Generation drops none.
  """
  num_experts: int
  top_k: int
  expert: Dense
  router: Router = SoftmaxRouter()
  shared: Dense | None = None
  capacity_factor: float | None = None

  def __post_init__(self):
    require(self.num_experts > 0, 'num_experts', self.num_experts, 'use a positive integer')
    require(0 < self.top_k <= self.num_experts, 'top_k', self.top_k, f'use 1 to num_experts={self.num_experts}')
    require(self.capacity_factor is None or self.capacity_factor > 0, 'capacity_factor', self.capacity_factor,
            'use a positive number, or None to drop no token')
    if isinstance(self.router, SigmoidRouter):
      groups, top = self.router.groups, self.router.top_groups
      require(self.num_experts % groups == 0, 'router.groups', groups,
              f'use a divisor of num_experts={self.num_experts}')
      reachable = top * (self.num_experts // groups)
      require(self.top_k <= reachable, 'top_k', self.top_k, f'{top} of {groups} groups hold only {reachable} experts')

  def capacity(self, num_tokens: int) -> int | None:
    """The most tokens that an expert takes of a sequence of so many; None: all."""
    if self.capacity_factor is None:
      return None
    return math.ceil(self.capacity_factor * num_tokens * self.top_k / self.num_experts)


FeedForward = Dense | MixtureOfExperts
