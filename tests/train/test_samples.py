"""Answers that an earlier stage gives and a later one learns from: written once, whatever stops the run."""
import dataclasses
import json
import signal
import time
import types

import jax
import jax.numpy as jnp
import pytest

from llm_jax.checkpoints.manifest import NAME as MANIFEST
from llm_jax.config import presets
from llm_jax.config.experiment import (
  BestOf,
  Constant,
  Length,
  Params,
  Regex,
  Run,
  Samples,
  SortedDigits,
  Text,
  stage,
)
from llm_jax.config.run import Mesh
from llm_jax.data.stage_data import StageData
from llm_jax.data.tokenizers.byte_level import ByteTokenizer
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.rollout.sample_files import SampleFiles
from llm_jax.runtime.errors import CheckpointError
from llm_jax.sharding.mesh import make_mesh
from llm_jax.tracking.metrics import read_metrics
from llm_jax.train.data import warn_of_seen
from llm_jax.train.samples import files_of, is_made, make_samples
from tests.train import runs
from tests.train.stopped_parts import parts_written

MODEL = presets.llama(d_model=16, num_layers=1, num_heads=2, d_ff=32, vocab_size=257)
SAMPLES = Samples('texts', SortedDigits(3, 100), (Regex('[^a-m]', weight=0.5), Length(longest=6, margin=5)), answers=4,
                  count=14, max_new_tokens=6, temperature=0.8, rows_at_once=17)
PARTS = 4  # of 4, 4, 4 and 2 prompts
ROWS = dict(seq_len=32, batch_size=4, steps=2, learning_rate=Constant(1e-3))


def make_session(folder, scale=6.0):
  """What sampling asks of a session; the model is a random one, whose tokens are not all alike."""
  folder.mkdir(exist_ok=True)
  (folder / MANIFEST).write_text(str(scale))
  params = Transformer(MODEL, Execution(unroll=False)).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']
  checkpoint = types.SimpleNamespace(path=folder, metadata=types.SimpleNamespace(final=True))
  run = Run(MODEL, (stage('texts', Text('books'), **ROWS), stage('best', BestOf(SAMPLES), **ROWS)))
  models = types.SimpleNamespace(whole=lambda stage, checkpoint: jax.tree.map(lambda p: scale * p, params))
  return types.SimpleNamespace(
    run=run, workdir=folder, mesh=make_mesh(Mesh(data=1), jax.devices()[:1]), execution=Execution('float32'),
    tokenizer=ByteTokenizer(), primary=True, store=lambda name: types.SimpleNamespace(latest_valid=lambda: checkpoint),
    saved_models=lambda: models)


def make(session):
  make_samples(session, session.run.stages[1], SAMPLES)
  return files_of(session, SAMPLES)


@pytest.fixture(scope='module')
def untouched(tmp_path_factory):
  return make(make_session(tmp_path_factory.mktemp('untouched')))


def content(files):
  return (files.folder / 'answers.jsonl').read_bytes()


def test_what_is_written(untouched):
  """Each prompt once with all of its answers, and its own draws in every part."""
  records = untouched.records()
  assert len({record['prompt'] for record in records}) == len(records) == 14
  assert all(len(record['answers']) == 4 and record['columns']['answer'] for record in records)
  answers = [answer for record in records for answer in record['answers']]
  for answer in answers:
    assert answer['reward'] == pytest.approx(0.5 * answer['scores'][0] + answer['scores'][1])
  assert len({answer['text'] for answer in answers}) > 28
  manifest = json.loads((untouched.folder / 'manifest.json').read_text())
  assert manifest['reward'] == pytest.approx(sum(answer['reward'] for answer in answers) / 56)
  assert manifest['prompts'] == 14 and not (untouched.folder / 'parts').exists()


@pytest.mark.parametrize('stopped_after', range(PARTS + 1))
def test_a_run_that_is_stopped_goes_on(stopped_after, untouched, tmp_path, monkeypatch):
  """Nothing is lost, nothing is there twice, and what is there is not sampled again."""
  session = make_session(tmp_path / 'run')
  written, resumed = parts_written(lambda: make(session), lambda: is_made(session, SAMPLES), 'write_part',
                                   stopped_after, monkeypatch)
  assert written == [*range(PARTS)]
  assert content(resumed) == content(untouched)
  assert is_made(session, SAMPLES)


def test_another_model_answers_anew(untouched, tmp_path, monkeypatch):
  folder = tmp_path / 'run'
  first = make(make_session(folder))
  assert content(first) == content(untouched)
  other = make_session(folder, scale=5.0)
  assert not is_made(other, SAMPLES)
  assert content(make(other)) != content(untouched)
  again = make_session(folder, scale=5.0)
  monkeypatch.setattr(SampleFiles, 'write_part', None)
  make(again)  # nothing is sampled


def test_every_part_draws_for_itself(tmp_path, monkeypatch):
  """With one prompt a part, asked again and again."""
  samples = dataclasses.replace(SAMPLES, prompts=SortedDigits(1, 1), count=6, rows_at_once=4)
  session = make_session(tmp_path / 'run')
  make_samples(session, session.run.stages[1], samples)
  texts = [answer['text'] for record in files_of(session, samples).records() for answer in record['answers']]
  assert len(set(texts)) > 12  # of 24; one part has 4


def test_parts_of_another_model_are_not_joined(untouched, tmp_path, monkeypatch):
  session = make_session(tmp_path / 'run', scale=5.0)
  with monkeypatch.context() as patched:
    patched.setattr(SampleFiles, 'finish', None)
    with pytest.raises(TypeError):
      make(session)
  assert content(make(make_session(tmp_path / 'run'))) == content(untouched)


def test_a_stage_behind_one_whose_data_is_still_to_be_made():
  """It is compared with what is there: its own training text and that of the first stage."""
  run = Run(MODEL, (stage('texts', Text('books'), **ROWS), stage('best', BestOf(SAMPLES), **ROWS, init=Params('texts')),
                    stage('more', Text('books'), **ROWS, init=Params('best'))))
  compared: list[str] = []
  validation = types.SimpleNamespace(seen_in=lambda trained: compared.append(trained) or [])
  opened = {'texts': StageData({32: 'texts'}, None), 'more': StageData({32: 'more'}, validation)}
  warn_of_seen(run, run.stages[2], opened)
  assert compared == ['texts', 'more']


def test_a_stage_that_has_not_finished(tmp_path):
  session = make_session(tmp_path / 'run')
  session.store = lambda name: types.SimpleNamespace(latest_valid=lambda: None)
  with pytest.raises(CheckpointError, match='stage best learns from answers of stage texts, which has not finished'):
    make(session)


@pytest.fixture(scope='module')
def whole_run(tmp_path_factory):
  """An uninterrupted run: texts, the best answers to prompts, then DPO on pairs of them."""
  folder = tmp_path_factory.mktemp('whole')
  runs.run(folder / 'none', folder / 'run', experiment=runs.tiny('samples', folder / 'none'))
  return folder / 'run'


@pytest.mark.slow
def test_what_a_person_sees(whole_run):
  records = read_metrics(whole_run)
  finals = {record['stage']: record for record in records if record['kind'] == 'final'}
  assert {'pass_greedy', 'pass_sampled', 'pass_greedy_at_start'} <= finals['best'].keys()
  sources = {(record['stage'], record['source']) for record in records if record['kind'] == 'data'}
  assert {('best', 'best_of'), ('pairs', 'pairs')} <= sources
  assert sorted(path.name[:5] for path in (whole_run / 'samples').iterdir()) == ['best-', 'texts']


@pytest.mark.slow
@pytest.mark.parametrize('folder, part', [('texts', 1), ('best', 0)])
def test_a_killed_run_goes_on_bitwise(folder, part, whole_run, tmp_path):
  """Killed as soon as a part is on disk."""
  experiment, workdir = runs.tiny('samples', tmp_path / 'none'), tmp_path / 'run'
  process = runs.start(tmp_path / 'none', workdir, experiment=experiment)
  while process.poll() is None and not list(workdir.glob(f'samples/{folder}-*/parts/{part:06}.jsonl')):
    time.sleep(0.002)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  runs.run(tmp_path / 'none', workdir, experiment=experiment)
  assert runs.losses(workdir) == runs.losses(whole_run)
  for path in whole_run.glob('samples/*/*.jsonl'):
    assert (workdir / path.relative_to(whole_run)).read_bytes() == path.read_bytes()
  for stage_name in ('texts', 'best', 'pairs'):
    assert runs.state_hash(workdir, stage_name) == runs.state_hash(whole_run, stage_name)


@pytest.mark.slow
def test_devices_change_no_answer(whole_run, tmp_path):
  mesh = ('--config.mesh.fsdp=2', '--config.mesh.data=1', '--config.mesh.tensor=2')
  runs.run(tmp_path / 'none', tmp_path / 'run', *mesh, experiment=runs.tiny('samples', tmp_path / 'none'), devices=4)
  [mine], [theirs] = ([*run.glob('samples/texts-*/answers.jsonl')] for run in (tmp_path / 'run', whole_run))
  assert mine.read_bytes() == theirs.read_bytes()
