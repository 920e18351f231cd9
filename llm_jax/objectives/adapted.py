"""Any objective, learnt by adapters beside frozen parameters."""
import dataclasses
from typing import Any, NamedTuple

import jax

from llm_jax.config.adapters import LoRA
from llm_jax.config.data import Data
from llm_jax.modules.low_rank import join
from llm_jax.objectives.loss import Loss, Params
from llm_jax.objectives.protocol import Objective


class Frozen(NamedTuple):
  """What a stage with adapters reads and never changes.

  base: all parameters of the model, stored as `LoRA.base` says.
  reference: the adapters that the stage starts from, where the objective compares with what it starts from; else None.
  """
  base: Any
  reference: Any


@dataclasses.dataclass(frozen=True)
class AdaptedObjective(Objective):
  """`objective` as a function of the adapters alone. The parameters that it would change by itself stay.

  The reference is the model that the stage starts from: the same base, with the adapters as they were then. Fresh
  adapters change nothing, so that it is the base with the adapters off. There is no second copy of the base.
  """
  objective: Objective = dataclasses.field(kw_only=True)
  adapters: LoRA = dataclasses.field(kw_only=True)

  @classmethod
  def of(cls, objective: Objective, adapters: LoRA) -> 'AdaptedObjective':
    return cls(objective.model, objective.config, objective.sources, objective=objective, adapters=adapters)

  def __call__(self, params: Params, frozen: Frozen, batch: Any, rng: jax.Array | None, statistics: Any = None) -> Loss:
    return self.objective(self.whole(params, frozen), self.reference(frozen), batch, rng, statistics)

  @property
  def has_statistics(self) -> bool:
    return self.objective.has_statistics

  def statistics(self, params: Params, frozen: Frozen, batch: Any, rng: jax.Array | None) -> Any:
    return self.objective.statistics(self.whole(params, frozen), self.reference(frozen), batch, rng)

  def init_parameters(self, data: Data, rng: jax.Array) -> Params:
    return self.objective.init_parameters(data, rng)

  def whole(self, params: Params, frozen: Frozen) -> Params:
    """All parameters of the model, with its adapters; no array is copied."""
    return join(frozen.base, params, self.adapters)

  def reference(self, frozen: Frozen) -> Any:
    """All parameters of the reference, or None."""
    return None if frozen.reference is None else join(frozen.base, frozen.reference, self.adapters)
