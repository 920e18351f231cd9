"""From the first token to an aligned model in one run: pretrain, anneal, average, SFT, DPO."""
import math
import signal

import numpy as np
import pytest

from llm_jax import paths
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.tracking.metrics import read_generations, read_metrics
from tests.train import runs

STAGES = ('pretrain', 'anneal', 'average', 'sft', 'dpo')


@pytest.fixture(scope='module')
def untouched(recipe_corpus, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('untouched')
  (workdir / 'output').write_text(runs.run(recipe_corpus, workdir, experiment=recipe(recipe_corpus)))
  return workdir


def recipe(corpus):
  return runs.tiny('recipe', corpus.parent)


def params(workdir, stage, count=1):
  return [dict(paths.leaves(checkpoint.read()))
          for checkpoint in CheckpointStore(workdir / 'checkpoints' / stage, 3).newest(count)]


def test_average_is_the_mean_of_the_last_checkpoints(untouched):
  last = params(untouched, 'anneal', 3)
  [got] = params(untouched, 'average')
  assert any((last[0][name] != last[2][name]).any() for name in got)
  for name, leaf in got.items():
    want = np.mean([each[name].astype(np.float64) for each in last], 0).astype(np.float32)
    np.testing.assert_array_equal(leaf, want, name)


def test_what_each_stage_learns(untouched):
  records = read_metrics(untouched)
  of = lambda stage, kind: [r for r in records if r['stage'] == stage and r['kind'] == kind]
  assert [r['stage'] for r in records if r['kind'] == 'final'] == list(STAGES)
  assert of('anneal', 'final')[0]['loss'] < of('pretrain', 'final')[0]['loss']
  assert 'bits_per_byte' in of('average', 'final')[0] and 'bits_per_byte' not in of('sft', 'final')[0]
  assert of('sft', 'final')[0]['loss'] < of('sft', 'train')[0]['loss']
  assert 0 <= of('sft', 'final')[0]['questions/accuracy'] <= 1
  first, last = of('dpo', 'train')[0], of('dpo', 'final')[0]
  assert abs(first['reward_margin']) < 1e-6  # the policy is the reference
  assert first['loss'] == pytest.approx(math.log(2) + 0.2 * first['nll'], rel=1e-6)
  assert last['reward_margin'] > 0 and last['loss'] < first['loss']
  [sample] = read_generations(untouched)
  assert sample['stage'] == 'sft' and sample['prompt'] == 'def f' and '<|im' not in sample['text']
  report = (untouched / 'report.html').read_text()
  assert 'aria-label="stages"' in report and '<h2>Multiple choice</h2>' in report


def test_held_out_text_that_was_trained_on_is_told(untouched):
  """Pretraining reads the file twice, once with nothing held out; conversations and pairs are files of their own."""
  told = [line for line in (untouched / 'output').read_text().splitlines() if 'not of unseen text' in line]
  seen = 'text (val_fraction=0.1) holds out text of text_2 (val_fraction=0.0), on which pretrain is trained'
  assert len(told) == 3 and all(seen in line for line in told)
  assert [stage for stage in STAGES for line in told if f'{stage}: ' in line] == ['pretrain', 'anneal', 'average']


def test_each_source_of_a_mixture_is_told_apart(untouched):
  """Pretraining mixes two sources, the second from nothing up, and only the first holds text out."""
  of = lambda kind: [r for r in read_metrics(untouched) if r['stage'] == 'pretrain' and r['kind'] == kind]
  first, last = of('train')[0], of('train')[-1]
  assert first['loss/text'] == pytest.approx(first['nll']) and 'loss/text_2' not in first
  low, high = sorted((last['loss/text'], last['loss/text_2']))
  assert low < last['nll'] < high and not any(name.startswith('weight/') for name in last)
  [final], shares = of('final'), {r['source']: r for r in of('data')}
  assert final['loss/text'] == pytest.approx(final['nll']) and 'loss/text_2' not in final
  assert final['bits_per_byte/text'] == pytest.approx(final['bits_per_byte'])
  assert shares['text']['share'] + shares['text_2']['share'] == pytest.approx(1)
  assert 0 < shares['text_2']['share'] < shares['text']['share'] and shares['text']['epochs'] > 0
  assert not any(r['kind'] == 'data' and r['stage'] == 'average' for r in read_metrics(untouched))
  assert '<h2>Data</h2>' in (untouched / 'report.html').read_text()


def test_a_stage_alone_needs_the_one_that_it_starts_from(recipe_corpus, tmp_path):
  output = runs.run(recipe_corpus, tmp_path, '--stage=dpo', experiment=recipe(recipe_corpus), expect=2)
  assert 'starts from stage sft, which has not finished' in output and not (tmp_path / 'checkpoints').exists()


@pytest.mark.slow  # test_resume.py kills a run of two stages
def test_killed_at_the_end_of_every_stage(recipe_corpus, untouched, tmp_path):
  """SIGKILL where the last checkpoint of a stage is committed, before (once) or after: the end is bitwise equal."""
  for kill_at in ('before_commit@12', *('after_commit@12',) * 4, ''):
    process = runs.start(recipe_corpus, tmp_path, experiment=recipe(recipe_corpus), kill_at=kill_at)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == (-signal.SIGKILL if kill_at else 0), output
  for stage in STAGES:
    assert runs.state_hash(tmp_path, stage) == runs.state_hash(untouched, stage)
  assert runs.losses(tmp_path) == runs.losses(untouched)
  assert runs.losses(tmp_path, 'final') == runs.losses(untouched, 'final')
