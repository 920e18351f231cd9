"""Any objective, learnt by adapters beside frozen parameters."""
import dataclasses
from typing import Any

import jax

from llm_jax.config.adapters import LoRA
from llm_jax.config.data import Data
from llm_jax.modules.low_rank import join
from llm_jax.objectives.frozen import Frozen
from llm_jax.objectives.loss import Loss, Params
from llm_jax.objectives.protocol import Objective


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
    return self.objective(self.whole(params, frozen), self.whole_frozen(frozen), batch, rng, statistics)

  @property
  def has_statistics(self) -> bool:
    return self.objective.has_statistics

  @property
  def depends_on_microbatches(self) -> bool:
    return self.objective.depends_on_microbatches or self.adapters.dropout > 0

  def statistics(self, params: Params, frozen: Frozen, batch: Any, rng: jax.Array | None) -> Any:
    return self.objective.statistics(self.whole(params, frozen), self.whole_frozen(frozen), batch, rng)

  def init_parameters(self, data: Data, rng: jax.Array) -> Params:
    return self.objective.init_parameters(data, rng)

  def whole(self, params: Params, frozen: Frozen) -> Params:
    """All parameters of the model, with its adapters; no array is copied."""
    return join(frozen.base, params, self.adapters)

  def whole_frozen(self, frozen: Frozen) -> Frozen:
    """What `objective` reads: all parameters of the reference, where there is one, in the place of its adapters."""
    if frozen.reference is None:
      return dataclasses.replace(frozen, base=None)
    return dataclasses.replace(frozen, base=None, reference=join(frozen.base, frozen.reference, self.adapters))
