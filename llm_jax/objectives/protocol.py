"""What an objective is: one class that says all about what is learnt."""
import abc
import dataclasses
from typing import Any, ClassVar

import jax

from llm_jax.config.data import Data
from llm_jax.config.objective import ObjectiveConfig
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.frozen import Frozen
from llm_jax.objectives.loss import Loss, Params


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
  """A loss of parameters and a batch. Only `__call__` has to be written; the other members have a default.

  model: what computes features and logits of the decoder's parameters.
  config: the objective's fields in the configuration.
  sources: names of the mixture's sources, where there are several; the loss of each is a metric too.
  own_parameters: names in the tree of parameters, beside the decoder's, that belong to the objective.
  """
  model: Transformer
  config: ObjectiveConfig
  sources: tuple[str, ...] = ()
  own_parameters: ClassVar[tuple[str, ...]] = ()

  @abc.abstractmethod
  def __call__(self, params: Params, frozen: Frozen, batch: Any, rng: jax.Array | None, statistics: Any = None) -> Loss:
    """The loss of a batch, as sums.

    frozen: parameters that are read and never trained, such as a reference's.
    batch: of the type that the objective's kind of rows gives.
    rng: of dropout; None: there is none.
    statistics: what `statistics` returned, summed over all that is learnt from at once, of which `batch` may be a part.
      None: `batch` is all of it.
    """

  @property
  def has_statistics(self) -> bool:
    """Whether the loss of a row depends on other rows, by sums over all that is learnt from at once."""
    return False

  @property
  def depends_on_microbatches(self) -> bool:
    """Whether it matters how a batch is cut into pieces, beyond what `statistics` makes up for."""
    return self.model.config.depends_on_microbatches

  def statistics(self, params: Params, frozen: Frozen, batch: Any, rng: jax.Array | None) -> Any:
    """These sums over a batch, without gradient: a pytree of float32 arrays. Asked for only with `has_statistics`."""
    return None

  def after_step(self, params: Params, step_sums: Any) -> Params:
    """Parameters after a step, where the objective moves some by itself, beside the optimizer.

    step_sums: `Loss.step_sums`, summed over all microbatches.
    """
    return params

  def init_parameters(self, data: Data, rng: jax.Array) -> Params:
    """Fresh float32 values of `own_parameters`, a function of `rng` alone."""
    return {}

  def start_parameters(self, fresh: Params, params: Params) -> Params:
    """What `own_parameters` are at the start of a stage whose start has none of them: the fresh ones, or what is made
    of the decoder's.   params: the decoder's."""
    return fresh
