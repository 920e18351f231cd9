"""Optimizers; `llm_jax/optim/optimizers.py` makes them."""
import dataclasses
import math

from llm_jax.config.errors import require

__all__ = ['AdamW', 'Muon', 'Optimizer']


@dataclasses.dataclass(frozen=True)
class AdamW:
  """Loshchilov & Hutter 2019; matrices decay, norms, biases and 1-d parameters do not (GPT-3, appendix B).

  b1: decay rate of the first moment.
  b2: decay rate of the second moment.
  eps: added to the root of the second moment.
  weight_decay: fraction of a matrix, times the learning rate, taken off in a step.
  """
  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.1

  def __post_init__(self):
    check_betas(self, 'b1', 'b2')


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
  """
  matrix_scale: float = 1.0
  beta: float = 0.95
  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.1

  def __post_init__(self):
    check_betas(self, 'beta', 'b1', 'b2')
    require(math.isfinite(self.matrix_scale) and self.matrix_scale > 0, 'matrix_scale', self.matrix_scale,
            'use a finite number above 0')


Optimizer = AdamW | Muon


def check_betas(optimizer: Optimizer, *names: str) -> None:
  for name in names:
    require(0 <= getattr(optimizer, name) < 1, name, getattr(optimizer, name), 'use a decay rate in [0, 1)')
  eps, decay = optimizer.eps, optimizer.weight_decay
  # At 0, what has had no gradient yet, as the embedding of a token that no batch held, would become 0 / 0.
  require(math.isfinite(eps) and eps > 0, 'eps', eps, 'use a finite number above 0, such as 1e-8')
  require(math.isfinite(decay) and decay >= 0, 'weight_decay', decay, 'use a finite number of 0 or more')
