"""The numbers of a run as TensorBoard shows them, a folder for each stage."""
import pathlib
import time
from typing import Any

from llm_jax.tracking.tracker import Record


class TensorBoard:
  """Writes the numbers of records as scalars named `kind/name`, or `kind/name/source` where they are of one source.

  A folder for each stage: TensorBoard shows them as runs.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self._writers: dict[str, Any] = {}  # tensorboardX.SummaryWriter, by stage
    self._purge_steps: dict[str, int] = {}  # the first step that TensorBoard is to forget, by stage

  @property
  def name(self) -> str:
    return str(self.folder)

  def write(self, record: Record) -> None:
    writer = self._writer(record.stage)
    source = record.values.get('source')
    suffix = '' if source is None else f'/{source}'
    for name, value in record.values.items():
      if isinstance(value, int | float):
        writer.add_scalar(f'{record.kind}/{name}{suffix}', value, record.step, walltime=record.time)

  def rewind(self, stage: str, step: int) -> None:
    self.close()
    self._purge_steps[stage] = step + 1

  def close(self) -> None:
    writers = list(self._writers.values())
    self._writers.clear()  # first: one that fails to close is not written to again
    for writer in writers:
      writer.close()

  def _writer(self, stage: str) -> Any:
    if stage not in self._writers:
      from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingTypeStubs]
      # The suffix keeps a run that resumes within a second from overwriting the file before it.
      self._writers[stage] = SummaryWriter(
        str(self.folder / stage), flush_secs=20, purge_step=self._purge_steps.pop(stage, None),
        filename_suffix=f'.{time.time_ns()}')
    return self._writers[stage]
