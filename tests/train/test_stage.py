"""What a stage does once even where a run is stopped or killed at an awkward moment."""
import dataclasses
from pathlib import Path

import pytest

from launch.experiment_file import load_run
from llm_jax.checkpoints.checkpoint import SavedCheckpoint
from llm_jax.checkpoints.metadata import Lineage
from llm_jax.config.errors import ConfigError
from llm_jax.evaluation.baselines import BaselinesEvaluation
from llm_jax.evaluation.protocol import Evaluated, Evaluation, Moment, Result
from llm_jax.tracking.metrics import read_generations
from llm_jax.tracking.progress import Progress
from llm_jax.train.evaluations import Evaluations
from llm_jax.train.hooks import Diverged, check_result
from llm_jax.train.run import check_starts, is_finished, open_data, open_session
from llm_jax.train.stage import StageProgress, build_stage, restore_progress, save_checkpoint
from llm_jax.train.starting_point import Start
from tests.checkpoints.checkpoint_states import RUN, make_metadata

EXPERIMENT = Path(__file__).with_name('tiny_experiment.py')


class RecordingStore:
  """Writes down what it is asked to do."""

  def __init__(self):
    self.calls = []

  def save(self, step, state, metadata, *, wait):
    self.calls.append(('save', step, wait))

  def wait(self):
    self.calls.append(('wait',))


@pytest.fixture
def session(corpus, tmp_path, monkeypatch):
  monkeypatch.setenv('LLM_JAX_CACHE', str(tmp_path / 'cache'))
  with open_session(load_run(f'{EXPERIMENT}:{corpus}'), tmp_path / 'run') as session:
    yield session


@pytest.fixture
def built(session):
  """The first stage, ready to train; its checkpoints go nowhere."""
  stage = session.run.stages[0]
  built = build_stage(session, stage, open_data(session, [stage]))
  return dataclasses.replace(built, store=RecordingStore())


def test_a_stop_at_a_checkpoints_step_saves_once(built):
  progress = StageProgress(lineage=Lineage(RUN), start_metrics={})
  save_checkpoint(built, progress, 4, None)
  save_checkpoint(built, progress, 4, None, wait=True)
  save_checkpoint(built, progress, 5, None, wait=True)
  assert built.store.calls == [('save', 4, False), ('wait',), ('save', 5, True)]


def test_another_validation_text_is_refused(built):
  """It is no part of the position in the data, and would go on with one curve on two texts."""
  fingerprint = built.data['first'].validation.fingerprint

  def resume(recorded):
    metadata = make_metadata(data=built.source.position(), eval_data=recorded)
    return restore_progress(built, Start(None, resumed=SavedCheckpoint(5, Path('checkpoint'), metadata, {}, '')))

  resume(fingerprint)
  resume({name: value for name, value in fingerprint.items() if name != 'formats'})  # what nobody noted
  with pytest.raises(ConfigError, match=r"eval_data\.data = .*: the checkpoint was made with old"):
    resume({**fingerprint, 'data': 'old'})


def test_a_finished_stage_without_checkpoints_is_not_trained_again_once_a_later_one_has_begun(session):
  """They may be deleted then, to save space: days of training would begin again without a word."""
  first, second = session.run.stages
  session.writer.write('final', first.name, first.steps)
  assert not is_finished(session, first)
  (session.workdir / 'checkpoints' / second.name / '00000005').mkdir(parents=True)
  assert is_finished(session, first)
  assert not is_finished(session, second)
  branch = dataclasses.replace(second, name='branch')
  with pytest.raises(ConfigError, match=f'{first.name}, which has lost its checkpoints: bring them back'):
    check_starts(session, [branch])


def test_there_are_no_baselines_where_nobody_knows_what_was_trained_on(session):
  second = session.run.stages[1]
  built = build_stage(session, second, open_data(session, [second]))
  [baselines] = [each for each in built.evaluations if isinstance(each, BaselinesEvaluation)]
  assert baselines.run(Evaluated(None, None, Moment.END, second.steps), {}) == Result()


def test_a_stage_that_ends_diverged_has_no_result(built):
  check_result(built.stage, 0)
  check_result(built.stage, 1)  # one step that was skipped happens
  with pytest.raises(Diverged, match='first: the gradient of its last 2 steps was not finite'):
    check_result(built.stage, 2)


def test_a_long_evaluation_does_not_look_like_a_hang(built):
  """The watchdog hears of every batch."""
  beats = []
  evaluations = Evaluations(built.session, built.stage, built.evaluations, {})
  evaluations.heartbeat = lambda: beats.append(1)
  params = built.starter.create().params
  held_out = built.evaluations[0]
  evaluations._run(held_out, Evaluated(params, None, Moment.STEP, 12))
  assert len(beats) == held_out.config.batches


class WritesPrompts(Evaluation):
  """Writes the name of every prompt."""

  def run(self, model, start):
    return Result(generations=tuple((prompt, prompt.upper()) for prompt in ('one', 'two')))


def test_generations_that_a_kill_left_are_completed_and_not_repeated(built):
  session = built.session
  session.writer.generation('first', 9, 'one', 'ONE')  # and then it was killed
  session.writer.generation('first', 6, 'two', 'TWO')
  evaluation = WritesPrompts(built.evaluations[0].config, built.evaluations[0].setup)
  evaluations = Evaluations(session, built.stage, [evaluation], {})
  for _ in range(2):
    evaluations.run_at_end(9, None, None, Progress(9, 'first', enabled=False), lambda: iter(()))
  written = [(record['step'], record['prompt']) for record in read_generations(session.workdir)]
  assert written == [(9, 'one'), (6, 'two'), (9, 'two')]
