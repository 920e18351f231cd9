"""Where a stage with adapters starts: its state holds the adapters alone, and beside it stands the frozen base."""
import dataclasses
from typing import Any

import jax

from llm_jax.checkpoints.checkpoint import SavedCheckpoint
from llm_jax.config.errors import located
from llm_jax.objectives.frozen import Frozen
from llm_jax.runtime.errors import CheckpointError
from llm_jax.train.build import init_trained
from llm_jax.train.starting_point import Start, Starter
from llm_jax.train.state import TrainState


class AdaptedStarter(Starter):
  """A `Starter` whose parameters are the adapters.

  They are fresh, or go on from those of an earlier stage. The base is read anew whenever the stage starts or goes on:
  a checkpoint has its digest, and another base is refused.
  """
  base: Any = None  # while a start is read

  def start(self, newest: SavedCheckpoint | None) -> Start:
    found = super().start(newest)
    digest = self.session.saved_models().base_digest(self.stage)
    recorded = None if newest is None else newest.metadata.lineage.base
    if newest is not None and recorded is not None and recorded != digest:
      raise CheckpointError(f'{newest.path}: its adapters were trained on another base ({recorded[:12]}, now '
                            f'{digest[:12]}): bring that one back, or start in another workdir')

    def read() -> tuple[TrainState, Frozen]:
      with located('config'):
        self.base = self.session.saved_models().base(self.stage)
      state, frozen = found.read()
      base, self.base = self.base, None
      return state, dataclasses.replace(frozen, base=base)

    return dataclasses.replace(found, read=read, base=digest)

  @property
  def abstract_frozen(self) -> Frozen:
    base = self.session.saved_models().abstract_base(self.stage)
    return dataclasses.replace(super().abstract_frozen, base=base)

  @property
  def goes_on(self) -> bool:
    """Whether the adapters of an earlier stage are trained on."""
    return self.session.saved_models().root(self.stage) is not self.stage

  def initial_params(self):
    read, parent = super().initial_params()
    return (read, parent) if self.goes_on else (self.fresh, parent)

  def fresh(self) -> Any:
    """Adapters that change nothing yet, and fresh parameters of the objective."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract.params)
    make = lambda base: init_trained(self.session.run, self.stage, base)
    return jax.jit(make, out_shardings=shardings)(self.base)

  def with_own_parameters(self, params: Any) -> Any:
    missing = [name for name in self.own_parameters if name not in params]
    if not missing:
      return params
    fresh = self.fresh()
    return {**params, **{name: fresh[name] for name in missing}}
