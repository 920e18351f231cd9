"""Weights & Biases."""
import importlib
import logging
from collections.abc import Mapping
from typing import Any

from llm_jax.config.trackers import WandB
from llm_jax.tracking.service import STEP, ServiceTracker, describe, title
from llm_jax.tracking.terminal import say
from llm_jax.tracking.tracker import TrackedRun

BEGIN_SECONDS = 30  # that the network is waited for
LOGIN_SECONDS = 60  # that a person at a terminal is waited for
END_SECONDS = 120  # that the last numbers may take


class WandBTracker(ServiceTracker):
  """Writes to Weights & Biases; the numbers are drawn over `global_step`."""

  def __init__(self, config: WandB, tracked: TrackedRun):
    super().__init__(WandBService(config, tracked), tracked)


class WandBService:
  """One run of Weights & Biases.

  Where it cannot be reached the run is kept in the folder, as with mode='offline'.
  """

  def __init__(self, config: WandB, tracked: TrackedRun):
    self._config = config
    self._tracked = tracked
    self._run: Any = None

  @property
  def name(self) -> str:
    return 'wandb'

  def open(self, run_id: str, is_new: bool) -> None:
    mode = self._config.mode
    try:
      self._run = self._begin(run_id, is_new, mode)
    except Exception as error:
      if mode == 'offline':
        raise
      logging.getLogger(__name__).warning(
        'wandb cannot be reached (%s): training goes on, and `wandb sync` can send what is written to %s',
        ' '.join(str(error).split()), self._tracked.workdir / 'wandb')
      importlib.import_module('wandb').teardown()  # it holds the id for the run that did not begin
      self._run = self._begin(run_id, is_new, 'offline')
    self._run.define_metric(STEP)
    self._run.define_metric('*', step_metric=STEP)
    say(f'wandb: {self._run.settings.sync_dir if self._run.offline else self._run.url}')

  def log(self, numbers: Mapping[str, float], step: int, time: float) -> None:
    self._run.log({**numbers, STEP: step, '_timestamp': time})

  def close(self) -> None:
    self._run.finish()

  def _begin(self, run_id: str, is_new: bool, mode: str) -> Any:
    wandb: Any = importlib.import_module('wandb')
    config = self._config
    settings = wandb.Settings(
      silent=True, console='off', init_timeout=BEGIN_SECONDS, login_timeout=LOGIN_SECONDS, finish_timeout=END_SECONDS)
    run = wandb.init(
      project=config.project, entity=config.entity, name=config.name or title(self._tracked), id=run_id,
      resume=None if is_new else 'allow', dir=str(self._tracked.workdir), config=describe(self._tracked), mode=mode,
      allow_val_change=True, reinit='create_new', settings=settings)
    if run.disabled:
      raise RuntimeError('nobody has logged in: `wandb login` does')
    return run
