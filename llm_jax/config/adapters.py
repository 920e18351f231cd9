"""Adapters: small matrices that are trained beside frozen weights. `llm_jax/modules/low_rank.py` applies them."""
import dataclasses
import math
import re

from llm_jax.config.errors import require

__all__ = ['Adapters', 'LoRA']

BASES = ('float32', 'bfloat16', 'int8', 'nf4')


@dataclasses.dataclass(frozen=True)
class LoRA:
  """Low-rank adapters (Hu et al. 2021): a weight W becomes W + alpha / rank x A B, of which A and B alone are trained.

  With `base='nf4'` this is QLoRA (Dettmers et al. 2023).

  rank: columns of A and rows of B.
  alpha: the product is scaled by alpha / rank.
  targets: a regular expression; the matrices whose path in the parameters it is found in get adapters.
  dropout: rate at which entries of the adapters' inputs are dropped in training.
  base: how the frozen weights are stored: 'float32', 'bfloat16', 'int8' or 'nf4'. 'int8' has a scale for each output;
    'nf4' has 4 bits, and its scales are quantised once more. Both are for the matrices of the blocks, beside which all
    other weights are bfloat16.
  rslora: whether the product is scaled by alpha / sqrt(rank) instead (Kalajdzievski 2023).
  dora: whether the length of each column of the sum is trained too (Liu et al. 2024, DoRA).
  """
  rank: int = 16
  alpha: float = 32.0
  targets: str = 'attention|feed_forward'
  dropout: float = 0.0
  base: str = 'bfloat16'
  rslora: bool = False
  dora: bool = False

  def __post_init__(self):
    require(self.rank >= 1, 'rank', self.rank, 'use 1 or more')
    require(math.isfinite(self.alpha) and self.alpha > 0, 'alpha', self.alpha, 'use a finite number above 0')
    require(0 <= self.dropout < 1, 'dropout', self.dropout, 'use a rate in [0, 1)')
    require(self.base in BASES, 'base', self.base, f'use one of {", ".join(BASES)}')
    require(not (self.dora and self.dropout), 'dropout', self.dropout,
            'dora=True scales the whole output, of which dropout knows a part: use dropout=0')
    try:
      re.compile(self.targets)
    except re.error as error:
      require(False, 'targets', self.targets, f'is no regular expression ({error})')

  @property
  def scale(self) -> float:
    """What the product of A and B is multiplied by."""
    return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

  def go_on_in(self, later: 'LoRA | None') -> bool:
    """Whether a later stage can train these adapters on: only their dropout may differ."""
    return later is not None and dataclasses.replace(self, dropout=later.dropout) == later


Adapters = LoRA
