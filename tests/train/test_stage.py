"""What a stage does once even where a run is stopped or killed at an awkward moment."""
import dataclasses
import re
import types
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import pytest

from launch.experiment_file import load_run
from llm_jax.checkpoints.checkpoint import SavedCheckpoint
from llm_jax.checkpoints.metadata import Lineage
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.config import schema
from llm_jax.config.errors import ConfigError
from llm_jax.config.experiment import WSD
from llm_jax.data.batch_source import DataPosition
from llm_jax.data.stage_data import StageData
from llm_jax.evaluation.baselines import BaselinesEvaluation
from llm_jax.evaluation.protocol import Evaluated, Evaluation, Moment, Result
from llm_jax.runtime.errors import CheckpointError
from llm_jax.tracking.metrics import read_generations
from llm_jax.tracking.progress import Progress
from llm_jax.tracking.saved_steps import note_saved_step
from llm_jax.train import run as run_module
from llm_jax.train.branches import Branch
from llm_jax.train.data import check_unchanged_data, open_data
from llm_jax.train.evaluations import Evaluations
from llm_jax.train.hooks import Diverged, SavePeriodically, check_result, divergence_hint
from llm_jax.train.out_of_memory import (
  UNITS,
  OutOfMemory,
  activation_bytes,
  fullest,
  naming_out_of_memory,
  planned,
  state_bytes,
)
from llm_jax.train.own_checkpoints import check_not_lost, check_own
from llm_jax.train.run import check_starts, is_finished, open_session
from llm_jax.train.stage import StageProgress, build_stage, restore_progress, save_checkpoint
from llm_jax.train.starting_point import Start
from tests.checkpoints.checkpoint_states import RUN, make_metadata

EXPERIMENT = Path(__file__).with_name('tiny_experiment.py')


class RecordingStore:
  """Writes down what it is asked to do."""

  def __init__(self):
    self.calls = []

  def save(self, step, state, metadata, *, wait, keep_all):
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
  state = dataclasses.make_dataclass('State', ['skipped'])(0)
  save_checkpoint(built, progress, 4, state)
  save_checkpoint(built, progress, 4, state, wait=True)
  save_checkpoint(built, progress, 5, state, wait=True)
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
  check_result(built.stage, 0, 'hint')
  check_result(built.stage, 1, 'hint')  # one step that was skipped happens
  with pytest.raises(Diverged, match='first: its last 2 steps were skipped: it has no result. hint'):
    check_result(built.stage, 2, 'hint')


class Watch:
  """Stands for the log: it counts the pauses."""

  def __init__(self, stage):
    self.stage = stage

  def pause(self, doing, use):
    pass

  def resume(self):
    pass


def test_no_checkpoint_is_taken_while_steps_are_skipped(built):
  """It comes with the first step that is not; a step that another stage names is saved in any case."""
  def saved(skipped, pinned=()):
    steps = []
    hook = SavePeriodically(5, Watch(built.stage), lambda step, state: steps.append(step), pinned)
    for step in range(1, 25):
      hook(step, types.SimpleNamespace(skipped=int(step in skipped)), {})
    return steps

  assert saved(()) == [5, 10, 15, 20]
  assert saved((4,)) == [5, 10, 15, 20]
  assert saved((9, 10, 11)) == [5, 12, 15, 20]
  assert saved(range(8, 21)) == [5, 21]
  assert saved(range(8, 24), pinned=(15,)) == [5, 15]


def test_what_to_do_about_a_stage_that_diverged():
  hint = divergence_hint([20, 15, 10, 5, 1], is_bound=True)
  assert '--from_step=20 (saved are 20, 15, 10, 5, and 0 is where the stage began)' in hint
  assert '--from_step=0 (where the stage began)' in divergence_hint([], is_bound=True)
  assert 'nothing is saved yet, so the same workdir takes the change' in divergence_hint([], is_bound=False)


# ---------------------------------------------------------------------------------------------- lost and foreign ones
def test_a_stage_whose_checkpoints_are_gone_is_named(session):
  first, second = session.run.stages
  check = lambda steps=(): check_not_lost(session.workdir, session.run, second, steps)
  for step in range(1, 11):
    session.writer.write('train', second.name, step, skipped=False)
  check()  # killed before the first save was complete
  session.writer.write('train', second.name, 11, skipped=True)
  check()  # a skipped step puts the save off
  session.writer.write('train', second.name, 12, skipped=False)
  with pytest.raises(CheckpointError, match='stage second had reached step 12 and its checkpoints are gone'):
    check()
  check((5,))
  check_not_lost(session.workdir, session.run, first, ())


def test_a_stage_that_was_saved_before_its_time_is_missed_too(session, caplog):
  """As a request to stop leaves it: the metrics alone would not tell."""
  second = session.run.stages[1]
  session.writer.write('train', second.name, 3, skipped=False)
  note_saved_step(session.workdir, second.name, 3)
  with pytest.raises(CheckpointError, match='step 3 and its checkpoints are gone.*--stage=second --from_step=0'):
    check_not_lost(session.workdir, session.run, second, ())
  note_saved_step(session.workdir, second.name, 10)
  check_not_lost(session.workdir, session.run, second, (10, 5))
  assert not caplog.records
  check_not_lost(session.workdir, session.run, second, (5,))
  assert 'the checkpoint of step 10 is gone, the newest is that of step 5' in caplog.text


def test_a_finished_stage_that_lost_its_checkpoints_is_not_trained_again(session):
  second = session.run.stages[1]
  session.writer.write('final', second.name, second.steps)
  with pytest.raises(CheckpointError, match='stage second had reached step 12'):
    check_not_lost(session.workdir, session.run, second, ())


def saved_by(run, stage, step, **changes):
  """A checkpoint as a run states it."""
  samples = next(each for each in run.stages if each.name == stage).samples_after(step)
  fields = {'config': schema.to_json(run), 'stage': stage, **changes}
  return SavedCheckpoint(step, Path(f'{step:08d}'), make_metadata(samples, **fields), {}, '')


def changed(run, number=0, **fields):
  stages = list(run.stages)
  stages[number] = dataclasses.replace(stages[number], **fields)
  return dataclasses.replace(run, stages=tuple(stages))


def test_a_checkpoint_of_another_run_is_named(session):
  run = session.run
  check_own(saved_by(run, 'first', 5), run, 'first', ())
  check_own(saved_by(changed(run, remat='block'), 'first', 5), run, 'first', ())
  others = {
    'config.seed': dataclasses.replace(run, seed=9),
    r'config.stages\[0\].learning_rate.peak': changed(run, learning_rate=WSD(0.3, warmup=4)),
    r'config.stages\[0\].batch_size': changed(run, batch_size=4),
    r'config.model.dropout': dataclasses.replace(run, model=dataclasses.replace(run.model, dropout=0.2)),
  }
  for field, other in others.items():
    with pytest.raises(CheckpointError, match=f'00000005: is of another run, with {field} = '):
      check_own(saved_by(other, 'first', 5), run, 'first', ())
  later = changed(run, 1, learning_rate=WSD(0.3))
  check_own(saved_by(later, 'first', 5), run, 'first', ())  # of what comes after it nothing is in it
  with pytest.raises(CheckpointError, match='learning_rate.peak'):
    check_own(saved_by(later, 'second', 5), run, 'second', ())


def test_a_checkpoint_in_a_wrong_place_is_named(session):
  run = session.run
  with pytest.raises(CheckpointError, match='is one of stage second'):
    check_own(saved_by(run, 'second', 5), run, 'first', ())
  with pytest.raises(CheckpointError, match='states 40 samples of data, and step 6 comes after 48'):
    check_own(saved_by(run, 'first', 6, data=DataPosition(40, {})), run, 'first', ())
  with pytest.raises(CheckpointError, match='its configuration cannot be read'):
    check_own(saved_by(run, 'first', 5, config={'seed': 1}), run, 'first', ())


def test_what_a_run_was_before_it_went_back_is_its_own_up_to_there(session):
  run = session.run
  before = changed(run, learning_rate=WSD(0.3, warmup=4))
  branches = (Branch('first', 10, 'now', {}, before),)
  check_own(saved_by(before, 'first', 10), run, 'first', branches)
  check_own(saved_by(run, 'first', 15), run, 'first', branches)
  with pytest.raises(CheckpointError, match='is of another run'):
    check_own(saved_by(before, 'first', 15), run, 'first', branches)


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


def test_data_that_changed_between_the_start_of_the_run_and_of_the_stage_is_named(session):
  split = types.SimpleNamespace(changed_files=lambda: ['b.jsonl', 'a.jsonl'])
  same = types.SimpleNamespace(changed_files=lambda: [])
  second = session.run.stages[1]
  check_unchanged_data(session.run, second, StageData({32: same}, same))
  check_unchanged_data(session.run, second, StageData({32: same}, None))
  with pytest.raises(ConfigError, match=r"config.stages\[1\].data = 'a.jsonl, b.jsonl': changed since the run began"):
    check_unchanged_data(session.run, second, StageData({32: same}, split))


# ---------------------------------------------------------------------------------------------- tokenizers and ranks
def test_a_checkpoint_of_another_tokenizer_is_refused_with_both_fingerprints(session):
  """The stage's own, and that of the stage that it starts from."""
  run = session.run
  first, second = run.stages
  data = open_data(session, [first, second])
  message = f'00000024 was trained with tokenizer other, this run has {session.tokenizer.fingerprint}: bring the first'
  with pytest.raises(CheckpointError, match=message):
    build_stage(session, first, data).starter.start(saved_by(run, 'first', 24, tokenizer='other'))
  metadata = saved_by(run, 'first', 24, tokenizer='other', final=True).metadata
  with session.store('first') as store:
    store.save(24, {'params': {'w': jnp.zeros(3)}}, metadata, wait=True)
  with pytest.raises(CheckpointError, match=message):
    build_stage(session, second, data).starter.start(None)


def test_processes_that_read_other_data_do_not_agree(session, corpus, tmp_path, monkeypatch):
  """What they compare before anything compiles: a text with one letter changed is another one."""
  said = []
  monkeypatch.setattr(run_module.processes, 'agree', lambda name, digest: said.append((name, digest)))
  open_data(session, session.run.stages)
  open_data(session, session.run.stages)
  other = tmp_path / 'other' / corpus.name
  other.parent.mkdir()
  other.write_text(corpus.read_text().replace('self', 'sElf', 1))
  run = load_run(f'{EXPERIMENT}:{other}')
  open_data(dataclasses.replace(session, run=run), run.stages)
  assert [name for name, _ in said] == ['data'] * 3
  assert said[0] == said[1] != said[2]


# ---------------------------------------------------------------------------------------------- out of memory
def test_out_of_memory_is_one_line_with_what_would_help(session):
  stage = session.run.stages[0]
  built = build_stage(session, stage, open_data(session, [stage]))
  text = 'RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes.\nmore'
  with pytest.raises(OutOfMemory) as caught, naming_out_of_memory(built):
    raise RuntimeError(text)
  message = str(caught.value)
  assert message.startswith('out of memory in stage first, training: RESOURCE_EXHAUSTED: Out of memory allocating '
                            '17179869184 bytes (16.0 GiB)')
  assert '\n' not in message and message.endswith('or use a smaller model')
  assert 'By the plan its fullest step takes ' in message
  for category in ('parameters', 'optimizer state', 'gradients', 'activations', 'logits'):
    assert re.search(rf'[:,] {category}[^,]* [\d.]+ [KM]iB', message), category
  saved = [float(number) * UNITS[unit] for number, unit in re.findall(r' saves ([\d.]+) ([KM])iB', message)]
  assert saved == sorted(saved, reverse=True) and len(saved) > 3
  assert '--config.stages[0].remat=block saves ' in message
  for impossible in ('twice the devices', 'microbatches'):  # a row for each device is all that there is
    assert impossible not in message
  assert 'is enough' not in message  # nothing is known of what this device has
  with pytest.raises(RuntimeError, match='another'), naming_out_of_memory(built):
    raise RuntimeError('another')
  with pytest.raises(OutOfMemory), naming_out_of_memory(built):
    raise MemoryError
  with pytest.raises(CheckpointError), naming_out_of_memory(built):
    raise CheckpointError('step 5 was not saved (disk full: RESOURCE_EXHAUSTED: No space left on device)')


def test_where_the_compiler_says_what_there_is_one_knob_is_enough_or_several_are(session):
  stage = session.run.stages[0]
  built = build_stage(session, stage, open_data(session, [stage]))
  peak = fullest(built).peak / 2**20
  say = lambda wanted, there: planned(built, f'Ran out of memory in memory space hbm. Used {wanted}M of {there}M hbm.')
  slightly, much, hopeless = say(2 * peak, 2 * peak - 0.01), say(peak, 0.45 * peak), say(9 * peak, peak)
  assert f'of a device with {2 * peak - 0.01:.1f} MiB' in slightly
  assert 'which is enough' in slightly and 'together' not in slightly
  assert re.search('; together (--config[^ ]+ ){2,}are enough', much)
  assert 'no settings on these devices are enough' in hopeless
  newer = planned(built, 'Ran out of memory on HBM, the total memory required for HLO temporaries '
                  f'({9 * peak}M) exceeds available HBM ({peak}M).')
  assert newer == hopeless


def test_what_the_state_takes_is_counted_from_its_arrays(session):
  stage = session.run.stages[0]
  built = build_stage(session, stage, open_data(session, [stage]))
  state = built.starter.create()
  counted = sum(leaf.nbytes for leaf in jax.tree.leaves((state, state.params)))
  assert state_bytes(built) == counted


def test_less_is_kept_for_the_backward_pass_with_remat_and_with_microbatches(session):
  """Halving the rows halves all but the parameters; recomputed blocks keep their inputs alone."""
  stage = dataclasses.replace(session.run.stages[0], batch_size=32)  # a quarter still has a row for each device
  built = build_stage(session, stage, open_data(session, [stage]))
  whole, half, quarter = (activation_bytes(built, dataclasses.replace(stage, microbatches=m)) for m in (1, 2, 4))
  assert whole - half == pytest.approx(2 * (half - quarter), rel=0.02)
  assert activation_bytes(built, dataclasses.replace(stage, remat='block')) < 0.6 * whole


# ---------------------------------------------------------------------------------------------- older checkpoints
@flax.struct.dataclass
class OldState:
  """A training state before spikes were skipped."""
  step: Any
  params: Any
  opt_state: Any
  ema: Any
  nonfinite: Any


def test_a_checkpoint_of_before_spikes_were_skipped_is_taken_up(session, tmp_path):
  stage = session.run.stages[0]
  built = build_stage(session, stage, open_data(session, [stage]))
  state = built.starter.create()
  old = OldState(state.step + 5, state.params, state.opt_state, state.ema, jnp.int32(0))
  with CheckpointStore(tmp_path / 'old') as store:
    store.save(5, old, make_metadata(40, tokenizer=session.tokenizer.fingerprint), wait=True)
    start = built.starter.start(store.latest_valid())
    restored, _ = start.read()
  expected = dataclasses.replace(state, step=state.step + 5)
  assert jax.tree.structure(restored) == jax.tree.structure(expected)
  for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
    assert ours.sharding == theirs.sharding and jnp.array_equal(ours, theirs)
