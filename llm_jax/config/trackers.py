"""Where the numbers of a run go beside `metrics.jsonl`: `Run.trackers` is a tuple of these; `llm_jax/tracking/` writes
them.

To add one, write its class here, name it in `Tracker`, and write the class that `implementation` names.
"""
import dataclasses
from typing import ClassVar

from llm_jax.config.errors import require

__all__ = ['TensorBoard', 'Tracker', 'Trackio', 'WandB']

NOT_IN_NAMES = '/\\#?%:'  # characters that Weights & Biases takes in no project's name


class TrackerConfig:
  """What every tracker states beside its own fields.

  implementation: the class that writes it, 'package.module:Class'.
  packages: what must be installed for it, and `extra`, which installs that.
  """
  implementation: ClassVar[str]
  packages: ClassVar[tuple[str, ...]] = ()
  extra: ClassVar[str] = ''


@dataclasses.dataclass(frozen=True)
class TensorBoard(TrackerConfig):
  """TensorBoard's files in the folder of the run, `tensorboard/STAGE`."""
  implementation: ClassVar[str] = 'llm_jax.tracking.tensorboard:TensorBoardTracker'


@dataclasses.dataclass(frozen=True)
class WandB(TrackerConfig):
  """Weights & Biases, one of its runs for a run. A resumed run goes on in it.

  project: name of the project.
  entity: the user or team; None: the account's own.
  name: of the run; None: that of its folder.
  mode: 'online', or 'offline', which keeps all in the folder of the run until `wandb sync` sends it.
  """
  project: str
  entity: str | None = None
  name: str | None = None
  mode: str = 'online'
  implementation: ClassVar[str] = 'llm_jax.tracking.wandb:WandBTracker'
  packages: ClassVar[tuple[str, ...]] = ('wandb',)
  extra: ClassVar[str] = 'wandb'

  def __post_init__(self):
    bad = [character for character in self.project if character in NOT_IN_NAMES]
    require(bool(self.project) and not bad, 'project', self.project, f'use a name without any of {NOT_IN_NAMES}')
    require(self.mode in ('online', 'offline'), 'mode', self.mode, "use 'online' or 'offline'")


@dataclasses.dataclass(frozen=True)
class Trackio(TrackerConfig):
  """Trackio, on this machine (`trackio show --project=PROJECT`) or in a Hugging Face Space.

  project: name of the project.
  name: of the run; None: that of its folder and a random number.
  space_id: 'OWNER/NAME' of the Space; None: this machine.
  """
  project: str
  name: str | None = None
  space_id: str | None = None
  implementation: ClassVar[str] = 'llm_jax.tracking.trackio:TrackioTracker'
  packages: ClassVar[tuple[str, ...]] = ('trackio',)
  extra: ClassVar[str] = 'trackio'

  def __post_init__(self):
    require(bool(self.project.strip()), 'project', self.project, 'name a project')


Tracker = TensorBoard | WandB | Trackio
