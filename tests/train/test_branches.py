"""Branches of one trunk, each with its own data and all scored on the same, and the mean of named checkpoints."""

import numpy as np
import pytest

from llm_jax import paths
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.tracking.metrics import read_metrics
from llm_jax.tracking.run_config import read_config
from tests.train import runs


@pytest.fixture(scope='module')
def done(recipe_corpus, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('run')
  return workdir, start(recipe_corpus, workdir)


def start(corpus, workdir, *flags, **kwargs):
  return runs.run(corpus, workdir, *flags, experiment=runs.tiny('branches', corpus.parent), **kwargs)


def checkpoint(workdir, stage, step):
  return CheckpointStore(workdir / 'checkpoints' / stage).at(step)


def final(workdir, stage):
  [record] = [r for r in read_metrics(workdir) if (r['kind'], r['stage']) == ('final', stage)]
  return record


def test_a_named_checkpoint_stays_and_the_mean_is_theirs(done):
  workdir, _ = done
  steps = {name: CheckpointStore(workdir / 'checkpoints' / name).steps() for name in ('trunk', 'plain', 'mixed')}
  assert steps == {'trunk': [8], 'plain': [12], 'mixed': [12, 4]}
  of = [dict(paths.leaves(checkpoint(workdir, *at).read())) for at in (('plain', 12), ('mixed', 4), ('mixed', 12))]
  mean = checkpoint(workdir, 'mean', 0)
  for name, leaf in paths.leaves(mean.read()):
    want = np.average([each[name].astype(np.float64) for each in of], 0, (1, 1, 2)).astype(np.float32)
    np.testing.assert_array_max_ulp(leaf, want, 1)
  assert mean.metadata.lineage.parent == 'plain/12 + mixed/4 + 2 x mixed/12'


def test_branches_start_alike_and_are_scored_on_the_same(done):
  workdir, _ = done
  assert [checkpoint(workdir, name, 12).metadata.lineage.parent for name in ('plain', 'mixed')] == ['trunk/8'] * 2
  scores = [final(workdir, name) for name in ('trunk', 'plain', 'mixed', 'mean')]
  assert len({score['weight'] for score in scores}) == 1  # held-out tokens
  assert scores[1]['loss'] != scores[2]['loss']


def test_the_mean_is_compared_with_its_last_checkpoint(done):
  """`_last_ema` is what the last averaged stage itself was judged by: its moving average, on the same data."""
  workdir, output = done
  mean, mixed = final(workdir, 'mean'), final(workdir, 'mixed')
  assert mean['bits_per_byte_last_ema'] == pytest.approx(mixed['bits_per_byte'], rel=1e-6)
  assert len({mean[name] for name in ('loss', 'loss_last_checkpoint', 'loss_last_ema')}) == 3
  for name in ('loss', 'bits_per_byte'):
    assert 0 < abs(mean[f'{name}_last_checkpoint'] / mean[name] - 1) < 0.5
  told = [f'{mean[name]:.4f}' for name in ('bits_per_byte_last_checkpoint', 'bits_per_byte_last_ema', 'bits_per_byte')]
  assert (f'mean  held-out {" -> ".join(told)} bits per byte '
          '(the last checkpoint alone -> its moving average -> the mean of 3)') in output


def test_the_report_draws_an_arrow_from_every_parent(done):
  workdir, _ = done
  report = (workdir / 'report.html').read_text()
  assert report.count('class="arrow"') == 4
  assert all(f'>{how}<' in report for how in ('resume', 'average last', 'average 4, 2 x last'))


def test_the_config_in_the_folder_is_the_same_run(done):
  run = read_config(done[0])
  assert [each.name for each in run.ancestors(run.stages[3])] == ['trunk', 'plain', 'mixed']


def test_the_mean_alone_needs_all_its_stages(recipe_corpus, tmp_path):
  output = start(recipe_corpus, tmp_path, '--stage=mean', expect=2)
  assert 'starts from stage plain, which has not finished' in output
