"""What a stage does once even where a run is stopped or killed at an awkward moment."""
import types

import pytest

from llm_jax.train import stage as stage_module
from llm_jax.train.metrics import MetricsWriter, read_samples
from llm_jax.train.stage import StageRun


class Store:
  """Writes down what it is asked for."""

  def __init__(self):
    self.calls = []

  def save(self, step, state, facts, *, wait):
    self.calls.append(('save', step, wait))

  def wait(self):
    self.calls.append(('wait',))


@pytest.fixture
def run(tmp_path, monkeypatch):
  """A stage without a model: its checkpoints go nowhere, and it writes the name of every prompt."""
  made = object.__new__(StageRun)
  made.stage = types.SimpleNamespace(name='a', steps=9, prompts=('one', 'two'))
  made.context = types.SimpleNamespace(run=types.SimpleNamespace(seed=0), workdir=tmp_path, lineage={},
                                       tokenizer=types.SimpleNamespace(fingerprint=''),
                                       writer=MetricsWriter(tmp_path, tensorboard=False))
  made.store, made.saved, made.begun, made.model, made.execution = Store(), None, {}, None, None
  made.done, made.before = False, None
  made.source = types.SimpleNamespace(position=dict)
  monkeypatch.setattr(stage_module.door, 'to_json', lambda run: {})
  monkeypatch.setattr(stage_module, 'best_params', lambda state: state)
  monkeypatch.setattr(stage_module, 'continue_prompts', lambda *_: [(p, p.upper()) for p in made.stage.prompts])
  return made


def test_a_stop_at_a_checkpoints_step_saves_once(run):
  run.save(4, None)
  run.save_and_wait(4, None)
  run.save_and_wait(5, None)
  assert run.store.calls == [('save', 4, False), ('wait',), ('save', 5, True)]


def test_samples_that_a_kill_left_are_completed_and_not_repeated(run):
  run.context.writer.sample('a', 9, 'one', 'ONE')  # and then it was killed
  run.context.writer.sample('a', 6, 'two', 'TWO')
  run.write_samples(9, None)
  run.write_samples(9, None)
  assert [(r['step'], r['prompt']) for r in read_samples(run.context.workdir)] == [(9, 'one'), (6, 'two'), (9, 'two')]
