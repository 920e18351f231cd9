"""Stages that are asked for needles: one ends as soon as it finds enough, the next tells before from after."""
import pytest

from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.tracking.metrics import read_metrics
from tests.train import runs


@pytest.fixture(scope='module')
def done(corpus, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('run')
  return corpus, workdir, start(corpus, workdir)


def start(corpus, workdir):
  return runs.run(corpus, workdir, experiment=runs.tiny('needles', corpus))


def records(workdir, kind, stage):
  return [r for r in read_metrics(workdir) if (r['kind'], r['stage']) == (kind, stage)]


def test_a_stage_ends_when_enough_is_found(done):
  corpus, workdir, output = done
  *earlier, last = records(workdir, 'eval', 'short')
  assert min(last['needles_32']) >= 0.05 and all(min(record['needles_32']) < 0.05 for record in earlier)
  assert last['step'] < 400 and CheckpointStore(workdir / 'checkpoints/short').steps()[0] == last['step']
  [final] = records(workdir, 'final', 'short')
  assert final['step'] == last['step'] and final['needles_32'] == last['needles_32']
  assert 'needles_32_at_start' not in final  # it began with nothing
  assert max(r['step'] for r in records(workdir, 'train', 'short')) == last['step']
  assert 'short: finished before, skipped' in start(corpus, workdir)


def test_before_and_after(done):
  _, workdir, output = done
  [short], [final] = records(workdir, 'final', 'short'), records(workdir, 'final', 'long')
  names = ('needles_32', 'needles_64', 'needles_32_at_start', 'needles_64_at_start')
  assert [len(final[name]) for name in names] == [3] * 4
  # Held-out text in the first stage's rows, by the model and the positions that it had: its own result.
  before = short['loss/corpus'] if 'loss/corpus' in short else short['loss']
  assert final['short_loss_at_start'] == pytest.approx(before)
  assert final['short_loss'] != final['short_loss_at_start']
  assert 'long  needles found in 64 tokens: ' in output
  assert 'long  held-out loss at the sequence length before: ' in output
