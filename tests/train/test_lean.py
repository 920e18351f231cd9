"""Stages whose parameters and moments are stored in few bits, as a user starts them."""
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from launch import convert
from launch.experiment_file import load_run
from llm_jax import paths
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.config.errors import ConfigError
from llm_jax.hf import load_pretrained
from llm_jax.tracking.metrics import read_metrics
from llm_jax.train import run as run_module
from llm_jax.train.run import check_memory, check_optimizers
from tests.train import runs

EXPERIMENT = pathlib.Path(__file__).with_name('tiny_lean.py')
STAGES = ('full', 'lean', 'further', 'mean', 'dpo', 'adapted', 'wide')


def start(recipe_corpus, workdir, *flags, **kwargs):
  return runs.run(recipe_corpus, workdir, *flags, experiment=runs.tiny('lean', recipe_corpus.parent), **kwargs)


@pytest.fixture(scope='module')
def untouched(recipe_corpus, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('untouched')
  start(recipe_corpus, workdir)
  return workdir


def newest(workdir, stage):
  return CheckpointStore(workdir / 'checkpoints' / stage).latest_valid()


def dtypes(checkpoint, key):
  return {path: leaf.dtype for path, leaf in checkpoint.leaves.items() if path.startswith(key)}


@pytest.mark.slow
def test_what_is_stored_in_how_many_bits(untouched):
  lean = newest(untouched, 'lean')
  for path, dtype in dtypes(lean, 'params/').items():
    assert dtype == ('bfloat16' if path.endswith('/w') else 'float32'), path
  assert set(dtypes(lean, 'ema/').values()) == {'float32'}
  moments = {path: dtype for path, dtype in dtypes(lean, 'opt_state/').items() if '/embedding/w' in path}
  assert sorted(moments.values()) == ['float32', 'float32', 'uint8', 'uint8']  # maxima and codes
  muons = {dtype for path, dtype in dtypes(newest(untouched, 'full'), 'opt_state/').items() if path.endswith('/w')}
  assert muons == {'bfloat16'}
  assert set(dtypes(newest(untouched, 'wide'), 'params/').values()) == {'float32'}
  assert set(dtypes(newest(untouched, 'adapted'), 'params/').values()) == {'float32'}


@pytest.mark.slow
def test_every_stage_begins_where_the_one_before_has_ended(untouched):
  """To within what bfloat16 rounds: the first loss is near the last."""
  records = [record for record in read_metrics(untouched) if record['kind'] == 'train']
  first = {stage: next(r['loss'] for r in records if r['stage'] == stage) for stage in STAGES if stage != 'mean'}
  last = {r['stage']: r['loss'] for r in records}
  assert abs(first['lean'] - last['full']) < 0.4 and abs(first['further'] - last['lean']) < 0.4
  assert abs(first['adapted'] - last['further']) < 0.4
  assert abs(first['dpo'] - np.log(2)) < 1e-5  # the reference is stored as the policy is
  assert all(np.isfinite(record['loss']) for record in records)


@pytest.mark.slow
def test_the_mean_is_rounded_once(untouched):
  of = [dict(paths.leaves(CheckpointStore(untouched / 'checkpoints' / 'further').at(step).read())) for step in (4, 8)]
  for name, leaf in paths.leaves(newest(untouched, 'mean').read()):
    want = np.mean([each[name].astype(np.float64) for each in of], 0).astype(np.float32)
    np.testing.assert_array_equal(leaf, want if leaf.dtype == np.float32 else np.asarray(jnp.asarray(want, leaf.dtype)))


@pytest.mark.slow
def test_a_run_that_is_killed_ends_the_same(recipe_corpus, untouched, tmp_path):
  """Killed while it saves the middle of a stage whose optimizer is in the host's memory."""
  workdir = tmp_path / 'killed'
  process = runs.start(recipe_corpus, workdir, experiment=runs.tiny('lean', recipe_corpus.parent))
  while not (workdir / 'checkpoints' / 'lean' / '00000004' / 'manifest.json').exists():
    assert process.poll() is None
  process.kill()
  process.communicate()
  start(recipe_corpus, workdir)
  assert runs.losses(workdir) == runs.losses(untouched)
  for stage in STAGES:
    assert runs.state_hash(workdir, stage) == runs.state_hash(untouched, stage)


@pytest.mark.slow
def test_the_export_has_the_numbers_that_are_stored(untouched, tmp_path):
  assert convert.main([f'--checkpoint={untouched}', '--stage=mean', f'--to_hf={tmp_path / "exported"}']) == 0
  exported = dict(paths.leaves(load_pretrained(tmp_path / 'exported')[1]))
  for path, leaf in paths.leaves(newest(untouched, 'mean').read_best()):
    np.testing.assert_array_equal(exported[path], leaf.astype(np.float32))


# ---------------------------------------------------------------------------------------- refused before a run begins
@pytest.mark.parametrize('field, value, message', [
  ('stages[2].parameters', 'float32', "goes on with that stage's, bfloat16"),
  ('stages[2].optimizer.moments', 'bfloat16', 'needs the optimizer of that stage and its moments'),
  ('stages[5].parameters', 'bfloat16', 'adapters are trained in float32'),
  ('stages[1].remat', 'host', 'use one of none, block, dots, offload'),
  ('stages[1].optimizer_memory', 'disk', "use 'device' or 'host'"),
  ('stages[1].parameters', 'float16', "use 'float32' or 'bfloat16'"),
])
def test_what_does_not_go_together_is_refused(field, value, message):
  with pytest.raises(ConfigError) as error:
    load_run(f'{EXPERIMENT}:FOLDER', [(field, value)])
  assert message in str(error.value)


def test_a_function_that_is_no_optimizer_is_refused_with_its_field():
  run = load_run(f'{EXPERIMENT}:FOLDER', [('stages[6].optimizer.function', 'optax:no_such')])
  with pytest.raises(ConfigError, match=r"config.stages\[6\].optimizer.function = 'optax:no_such': cannot be imported"):
    check_optimizers(run)


def test_a_device_without_memory_of_its_host_is_refused(monkeypatch):
  run = load_run(f'{EXPERIMENT}:FOLDER')
  check_memory(run)
  monkeypatch.setattr(run_module, 'has_host_memory', lambda device: False)
  with pytest.raises(ConfigError, match=r"config.stages\[1\].optimizer_memory = 'host': .* use 'device'"):
    check_memory(run)
