"""Optimizers; `llm_jax/optim/optimizers.py` makes them.

Where an optimizer has `moments`, its running means are stored so: 'float32' (4 bytes a number); 'bfloat16' (2 bytes,
rounded stochastically); or 'int8' (1.016 bytes, blocks of 256 in the dynamic data type of Dettmers et al. 2022).
Updates are computed in float32 whatever is stored.
"""
import dataclasses
import math
import re

from llm_jax.config.errors import require

__all__ = ['Adafactor', 'AdamW', 'Lion', 'Muon', 'Optax', 'OptaxArgument', 'Optimizer']

MOMENTS = ('float32', 'bfloat16', 'int8')


@dataclasses.dataclass(frozen=True)
class AdamW:
  """Loshchilov & Hutter 2019; matrices decay, norms, biases and 1-d parameters do not (GPT-3, appendix B).

  b1: decay rate of the first moment.
  b2: decay rate of the second moment.
  eps: added to the root of the second moment.
  weight_decay: fraction of a matrix, times the learning rate, taken off in a step.
  moments: how both moments are stored: 'float32', 'bfloat16' or 'int8'.
  """
  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.1
  moments: str = 'float32'

  def __post_init__(self):
    check_rates(self, 'b1', 'b2')
    check_eps(self)
    check_moments(self)


@dataclasses.dataclass(frozen=True)
class Muon:
  """Jordan et al. 2024 through `optax.contrib.muon`: matrices orthogonalised, the rest by AdamW.

  The stage's learning rate is AdamW's; matrices use `matrix_scale` times as much.

  matrix_scale: what the learning rate of the matrices is multiplied by.
  beta: momentum of the matrices.
  b1: decay rate of the first moment, for the rest.
  b2: decay rate of the second moment, for the rest.
  eps: added to the root of the second moment.
  weight_decay: fraction of a matrix, times the learning rate, taken off in a step.
  moments: how the momentum of the matrices and the moments of the rest are stored.
  """
  matrix_scale: float = 1.0
  beta: float = 0.95
  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.1
  moments: str = 'float32'

  def __post_init__(self):
    check_rates(self, 'beta', 'b1', 'b2')
    check_eps(self)
    check_moments(self)
    require(math.isfinite(self.matrix_scale) and self.matrix_scale > 0, 'matrix_scale', self.matrix_scale,
            'use a finite number above 0')


@dataclasses.dataclass(frozen=True)
class Lion:
  """Chen et al. 2023, Symbolic Discovery of Optimization Algorithms: the sign of an interpolated momentum.

  Every update has size 1, so that the learning rate is a third to a tenth of AdamW's, and the decay as much larger.

  b1: share of the momentum in the update.
  b2: decay rate of the momentum.
  weight_decay: fraction of a matrix, times the learning rate, taken off in a step.
  moments: how the momentum is stored: 'float32', 'bfloat16' or 'int8'.
  """
  b1: float = 0.9
  b2: float = 0.99
  weight_decay: float = 1.0
  moments: str = 'float32'

  def __post_init__(self):
    check_rates(self, 'b1', 'b2')
    check_moments(self)


@dataclasses.dataclass(frozen=True)
class Adafactor:
  """Shazeer & Stern 2018, algorithm 4, without momentum: a matrix keeps means of its rows and columns alone.

  Every layer and every expert has matrices of its own.

  decay_power: second moments decay at the rate 1 - step^-decay_power.
  clip_threshold: the root mean square of a matrix's update is cut to it.
  scale_by_parameter: whether the learning rate is relative to the root mean square of the matrix that is updated.
  least_scale: the least root mean square that a matrix is taken to have.
  eps: added to squared gradients.
  weight_decay: fraction of a matrix, times the learning rate, taken off in a step.
  """
  decay_power: float = 0.8
  clip_threshold: float = 1.0
  scale_by_parameter: bool = True
  least_scale: float = 1e-3
  eps: float = 1e-30
  weight_decay: float = 0.0

  def __post_init__(self):
    for name in ('decay_power', 'clip_threshold', 'least_scale'):
      value = getattr(self, name)
      require(math.isfinite(value) and value > 0, name, value, 'use a finite number above 0')
    check_rates(self)
    check_eps(self)


@dataclasses.dataclass(frozen=True)
class OptaxArgument:
  """A keyword of the function that `Optax` calls.

  name: of the keyword.
  value: what is given.
  """
  name: str
  value: bool | int | float | str


@dataclasses.dataclass(frozen=True)
class Optax:
  """Any optimizer that a function makes, such as `Optax('optax:lamb', (OptaxArgument('weight_decay', 0.1),))`.

  It is called with `learning_rate=1.0` and returns an `optax.GradientTransformation`; the training step multiplies the
  updates by the stage's learning rate. Its state is stored as it makes it.

  function: 'module:function' that can be imported.
  arguments: further keywords.
  """
  function: str
  arguments: tuple[OptaxArgument, ...] = ()

  def __post_init__(self):
    has_form = re.fullmatch(r'[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*', self.function) is not None
    require(has_form, 'function', self.function, "use 'module:function', such as 'optax:lamb'")
    names = [argument.name for argument in self.arguments]
    for i, name in enumerate(names):
      is_new = name not in ('learning_rate', *names[:i])
      require(is_new and name.isidentifier(), f'arguments[{i}].name', name,
              'name each keyword once, and not learning_rate, which is 1')


Optimizer = AdamW | Muon | Lion | Adafactor | Optax


def state_form(optimizer: Optimizer) -> tuple[object, ...]:
  """What decides the arrays of the optimizer's state: where it is the same, one goes on from the other's."""
  match optimizer:
    case AdamW() | Muon() | Lion():
      return type(optimizer), optimizer.moments
    case Adafactor():
      return (type(optimizer),)
    case Optax():
      return (optimizer,)


def check_rates(optimizer: Optimizer, *names: str) -> None:
  """names: the decay rates of its means."""
  for name in names:
    require(0 <= getattr(optimizer, name) < 1, name, getattr(optimizer, name), 'use a decay rate in [0, 1)')
  decay = getattr(optimizer, 'weight_decay', 0.0)
  require(math.isfinite(decay) and decay >= 0, 'weight_decay', decay, 'use a finite number of 0 or more')


def check_eps(optimizer: AdamW | Muon | Adafactor) -> None:
  # At 0, what has had no gradient yet, as the embedding of a token that no batch held, would become 0 / 0.
  eps = optimizer.eps
  require(math.isfinite(eps) and eps > 0, 'eps', eps, 'use a finite number above 0, such as 1e-8')


def check_moments(optimizer: AdamW | Muon | Lion) -> None:
  require(optimizer.moments in MOMENTS, 'moments', optimizer.moments, f'use one of {", ".join(MOMENTS)}')
