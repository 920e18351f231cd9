"""Trackio."""
import importlib
from collections.abc import Mapping
from typing import Any

from llm_jax.config.trackers import Trackio
from llm_jax.tracking.service import ServiceTracker, describe, title
from llm_jax.tracking.tracker import TrackedRun


class TrackioTracker(ServiceTracker):
  """Writes to Trackio; the numbers are drawn over the steps of all stages."""

  def __init__(self, config: Trackio, tracked: TrackedRun):
    super().__init__(TrackioService(config, tracked), tracked)


class TrackioService:
  """One run of Trackio, which knows it by its name."""

  def __init__(self, config: Trackio, tracked: TrackedRun):
    self._config = config
    self._tracked = tracked
    self._trackio: Any = None
    self._run: Any = None

  @property
  def name(self) -> str:
    return 'trackio'

  def open(self, run_id: str, is_new: bool) -> None:
    self._trackio = importlib.import_module('trackio')
    config = self._config
    self._run = self._trackio.init(
      project=config.project, name=config.name or f'{title(self._tracked)}-{run_id}',
      space_id=config.space_id, resume='never' if is_new else 'allow', config=describe(self._tracked), embed=False)

  def log(self, numbers: Mapping[str, float], step: int, time: float) -> None:
    self._run.log(dict(numbers), step=step)

  def close(self) -> None:
    self._trackio.finish()
