"""What a stage does once even where a run is stopped or killed at an awkward moment."""
import dataclasses
import types
from pathlib import Path

import pytest

from launch.experiment_file import load_run
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.config.errors import ConfigError
from llm_jax.tracking.metrics import MetricsWriter, read_generations
from llm_jax.train import scores
from llm_jax.train import stage as stage_module
from llm_jax.train.hooks import Diverged, check_result
from llm_jax.train.scores import Scorer
from llm_jax.train.stage import StageRun
from llm_jax.train.starting_point import Start


class Store:
  """Writes down what it is asked for."""

  def __init__(self):
    self.calls = []

  def save(self, step, state, metadata, *, wait):
    self.calls.append(('save', step, wait))

  def wait(self):
    self.calls.append(('wait',))


@pytest.fixture
def run(tmp_path, monkeypatch):
  """A stage without a model: its checkpoints go nowhere, and it writes the name of every prompt."""
  made = object.__new__(StageRun)
  made.stage = types.SimpleNamespace(name='a', steps=9, prompts=('one', 'two'))
  made.session = types.SimpleNamespace(run=types.SimpleNamespace(seed=0), workdir=tmp_path, lineage={},
                                       tokenizer=types.SimpleNamespace(fingerprint=''),
                                       writer=MetricsWriter(tmp_path, tensorboard=False))
  made.store, made.saved, made.begun, made.model, made.execution = Store(), None, {}, None, None
  made.done, made.before, made.scorer = False, None, types.SimpleNamespace(held_out=None)
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


def test_another_held_out_text_is_refused(run):
  """It is no part of the position in the data, and would go on with one curve on two texts."""
  metadata = {'data': {}, 'final': False, 'eval_data': {'data': 'old', 'seed': '0'}}
  resumed = types.SimpleNamespace(metadata=metadata)
  run.starter = types.SimpleNamespace(start=lambda newest: Start(None, resumed=resumed))
  run.store.latest_valid = lambda: None
  run.source.restore = lambda position: None
  for now in ({'data': 'old', 'seed': '0'}, {'data': 'old', 'seed': '0', 'formats': 'that nobody noted'}):
    run.scorer.held_out = types.SimpleNamespace(fingerprint=now)
    run.find_start()
  run.scorer.held_out.fingerprint = {'data': 'new', 'seed': '0'}
  with pytest.raises(ConfigError, match=r"eval_data\.data = 'new': the checkpoint was made with old"):
    run.find_start()


def test_a_finished_stage_without_checkpoints_is_not_trained_again_once_a_later_one_has_begun(tmp_path):
  """They may be deleted then, to save space: days of training would begin again without a word."""
  run = load_run(f'{Path(__file__).with_name("tiny_experiment.py")}:{tmp_path}', ())
  first, second = run.stages
  session = types.SimpleNamespace(run=run, workdir=tmp_path, primary=True,
                                  store=lambda name: CheckpointStore(tmp_path / 'checkpoints' / name))
  MetricsWriter(tmp_path, tensorboard=False).write('final', first.name, first.steps)
  assert not run.is_finished(session, first)
  (tmp_path / 'checkpoints' / second.name / '00000005').mkdir(parents=True)
  assert run.is_finished(session, first) and not run.is_finished(session, second)
  branch = dataclasses.replace(second, name='branch')
  with pytest.raises(ConfigError, match=f'{first.name}, which has lost its checkpoints: bring them back'):
    run.check_starts(session, [branch])
  scorer = object.__new__(Scorer)
  scorer.session, scorer.stage = session, second
  assert scorer.baselines(second.steps) == {}  # what the first was trained on is not known


def test_a_stage_that_ends_diverged_has_no_result(run):
  check_result(run.stage, 0)
  check_result(run.stage, 1)  # one step that was skipped happens
  with pytest.raises(Diverged, match='a: the gradient of its last 2 steps was not finite'):
    check_result(run.stage, 2)


def test_a_long_evaluation_is_no_standstill(monkeypatch):
  """The watchdog hears of every batch."""
  beats, scorer = [], object.__new__(Scorer)
  scorer.session, scorer.phase = types.SimpleNamespace(mesh=None), types.SimpleNamespace(rows=2)
  scorer.moves = lambda: beats.append(1)
  monkeypatch.setattr(scores, 'batch_sharding', lambda mesh: None)
  monkeypatch.setattr(scores, 'validation_batches', lambda data, rows, sharding, limit: iter(range(limit)))
  assert list(scorer.batches(None, 3)) == [0, 1, 2] and len(beats) == 3


def test_samples_that_a_kill_left_are_completed_and_not_repeated(run):
  run.session.writer.generation('a', 9, 'one', 'ONE')  # and then it was killed
  run.session.writer.generation('a', 6, 'two', 'TWO')
  run.write_samples(9, None)
  run.write_samples(9, None)
  written = [(r['step'], r['prompt']) for r in read_generations(run.session.workdir)]
  assert written == [(9, 'one'), (6, 'two'), (9, 'two')]
