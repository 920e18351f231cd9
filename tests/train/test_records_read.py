"""Of a thousand processes one reads what the run has written; the others write nothing and need not know."""
import pathlib
import types

import pytest

from llm_jax.evaluation.protocol import Result
from llm_jax.tracking.metrics import MetricsWriter, read_generations, read_metrics
from llm_jax.train import evaluations, stage


class Session(types.SimpleNamespace):
  """As much of a session as writing results takes."""


def finish(workdir: pathlib.Path, primary: bool) -> None:
  """The end of a stage of one evaluation, twice, as after a kill before the stage's result."""
  for _ in range(2):
    with MetricsWriter(workdir, primary=primary) as writer:
      session = Session(workdir=workdir, primary=primary, writer=writer)
      own = types.SimpleNamespace(name='sft')
      made = evaluations.Evaluations(session, own, [], {})
      result = Result({}, generations=(('once', 'upon'),), headline='0.5')
      made._write_generations(result, 3)
      made._write_display(types.SimpleNamespace(config=types.SimpleNamespace(name='held_out')), result, 3)
      built = types.SimpleNamespace(session=session, stage=own, phases=(), data={})
      if not primary:
        stage.write_mixture_stats(built, 3)


def test_the_first_process_writes_each_once(tmp_path):
  finish(tmp_path, primary=True)
  assert [record['prompt'] for record in read_generations(tmp_path)] == ['once']
  assert [record['evaluation'] for record in read_metrics(tmp_path)] == ['held_out']


def test_the_others_read_nothing(tmp_path, monkeypatch):
  def refuse(*_: object) -> None:
    pytest.fail('another process has read the records')
  for module, name in ((evaluations, 'read_metrics'), (evaluations, 'read_generations'), (stage, 'read_metrics')):
    monkeypatch.setattr(module, name, refuse)
  finish(tmp_path, primary=False)
  assert not list(tmp_path.iterdir())
