"""What the stages of a run share."""
import dataclasses
import pathlib

import jax

from llm_jax.adapters.base import SavedModels
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.config.run import Run
from llm_jax.config.stage import Stage
from llm_jax.data.tokenizers.base import Tokenizer
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.runtime.lineage import RunLineage
from llm_jax.runtime.preemption import Preemption
from llm_jax.tracking.metrics import MetricsWriter
from llm_jax.tracking.saved_steps import note_saved_step
from llm_jax.train.branches import Branch
from llm_jax.train.own_checkpoints import check_own


@dataclasses.dataclass(frozen=True)
class Session:
  """The services of one run in this process.

  lineage: where and with what the run was made.
  peak_flops: FLOP/s of all devices together.
  primary: whether this process is the one that prints and writes.
  branches: where the run went back to an earlier step.
  """
  run: Run
  workdir: pathlib.Path
  mesh: jax.sharding.Mesh
  execution: Execution
  tokenizer: Tokenizer
  writer: MetricsWriter
  preemption: Preemption
  lineage: RunLineage
  peak_flops: float
  primary: bool
  branches: tuple[Branch, ...] = ()

  def store(self, stage: str) -> CheckpointStore:
    """The checkpoints of the stage of that name."""
    inits = [other.init for other in self.run.stages]
    pinned = {step for init in inits for step in init.pinned_steps(stage)}
    is_averaged = any(init.averages_newest(stage) for init in inits)
    return CheckpointStore(
      self.workdir / 'checkpoints' / stage, self.run.checkpoints.keep,
      every=self.run.checkpoints.every if is_averaged else 0, pinned=pinned,
      check=lambda checkpoint: check_own(checkpoint, self.run, stage, self.branches),
      note_saved=lambda step: note_saved_step(self.workdir, stage, step))

  def saved_models(self) -> SavedModels:
    """What reads whole models where stages have saved adapters alone."""
    return SavedModels(self.run, self.workdir, self.mesh, self.store)

  def transformer(self, stage: Stage) -> Transformer:
    """The model as `stage` trains it."""
    execution = dataclasses.replace(self.execution, remat=stage.remat)
    return Transformer(self.run.model_of(stage).as_trained, execution)
