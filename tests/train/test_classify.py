"""A run that pretrains and then classifies: what each stage starts with, learns and refuses."""
import json
import signal

import jax
import numpy as np
import pytest

from llm_jax import paths
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.config.errors import ConfigError
from llm_jax.config.experiment import (
  Classification,
  Constant,
  Jsonl,
  LabelledJsonl,
  Resume,
  experiment,
  presets,
  stage,
)
from llm_jax.objectives.classification import init_head
from llm_jax.tracking.metrics import read_metrics
from tests.train import runs

LABELS = ('even', 'odd')


def write(folder, name, rows):
  (folder / name).write_text(''.join(json.dumps(row) + '\n' for row in rows))


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  """Texts whose class is their letter."""
  folder = tmp_path_factory.mktemp('classify')
  write(folder, 'text.jsonl', [{'text': f'{"ab"[i % 2] * 5} number {i}'} for i in range(40)])
  write(folder, 'labelled.jsonl', [{'text': 'ab'[i % 2] * (4 + i % 9), 'label': LABELS[i % 2]} for i in range(90)])
  return folder / 'text.jsonl'


@pytest.fixture(scope='module')
def untouched(corpus, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('untouched')
  runs.run(corpus, workdir, experiment=recipe(corpus), devices=2)
  return workdir


def recipe(corpus):
  return runs.tiny('classify', corpus.parent)


def leaves(workdir, stage, count=1, kind='params'):
  return [dict(paths.leaves(checkpoint.read((kind,))))
          for checkpoint in CheckpointStore(workdir / 'checkpoints' / stage, 3).newest(count)]


def test_it_learns_and_says_so(untouched):
  records = read_metrics(untouched)
  final = {r['stage']: r for r in records if r['kind'] == 'final'}
  first = next(r for r in records if r['stage'] == 'classify')
  result = final['classify']
  assert result['accuracy'] > 0.9 > result['most_common_class'] and result['class_loss'] < first['class_loss'] / 2
  for r in (first, result):
    np.testing.assert_allclose(r['loss'], r['class_loss'] + 0.5 * r['nll'], rtol=1e-5)
  assert 'bits_per_byte' not in result and 'bits_per_byte' in final['text']
  assert f'{result["accuracy"]:.0%} right' in (untouched / 'report.html').read_text()


def test_the_head_comes_goes_and_stays(untouched):
  """Fresh after pretraining and for other classes, kept for the same, left out where nothing is classified."""
  [pretrained], last = leaves(untouched, 'pretrain'), leaves(untouched, 'classify', 2)
  [average], [ema], [other], [text] = (leaves(untouched, name, kind=kind)[0:1] for name, kind in (
    ('average', 'params'), ('classify', 'ema'), ('other', 'params'), ('text', 'params')))
  assert last[0].keys() == ema.keys() == {*pretrained, 'classifier/w'} and last[0]['classifier/w'].shape == (32, 2)
  for name, leaf in average.items():
    want = np.mean([each[name].astype(np.float64) for each in last], 0).astype(np.float32)
    np.testing.assert_array_equal(leaf, want, name)
  config = presets.llama(d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=64, vocab_size=264)
  fresh = init_head(config, 2, jax.random.fold_in(jax.random.key(1), 1))['w']
  np.testing.assert_allclose(other['classifier/w'], fresh, rtol=1e-6)  # compiled and not: a rounding apart
  assert not np.allclose(last[0]['classifier/w'], fresh)
  assert text.keys() == pretrained.keys()
  for name, leaf in text.items():
    np.testing.assert_array_equal(leaf, ema[name], name)
    np.testing.assert_array_equal(other[name], ema[name], name)


@pytest.mark.slow  # test_resume.py kills runs without classes
def test_killed_and_resumed(corpus, untouched, tmp_path):
  for kill_at in ('after_commit@20', ''):
    only = () if kill_at else ('--stage=classify',)
    process = runs.start(corpus, tmp_path, *only, experiment=recipe(corpus), devices=2, kill_at=kill_at)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == (-signal.SIGKILL if kill_at else 0), output
  assert runs.state_hash(tmp_path, 'classify') == runs.state_hash(untouched, 'classify')
  assert runs.losses(tmp_path) == runs.losses(untouched)


def test_bad_rows_are_refused_before_anything_compiles(corpus, tmp_path):
  (tmp_path / 'text.jsonl').write_text(corpus.read_text())
  for rows, said in (([{'text': 'a', 'label': 'prime'}] * 9,
                      ('config.stages[1].data.sources[0].source.path', 'labelled.jsonl:', "label 'prime' is unknown")),
                     ([{'text': f'a{i}', 'label': 'even'} for i in range(20)],
                      ('config.stages[1].data.sources[0].source.labels', "('odd',)", 'no training text'))):
    write(tmp_path, 'labelled.jsonl', rows)
    output = runs.run(tmp_path / 'text.jsonl', tmp_path / 'run', experiment=recipe(tmp_path / 'text.jsonl'), expect=2)
    assert all(part in output for part in said), output
    assert 'compiled' not in output and not (tmp_path / 'run' / 'checkpoints').exists()


def test_stages_that_do_not_fit():
  text, texts = Jsonl('text.jsonl'), LabelledJsonl('labelled.jsonl', LABELS)
  common = dict(seq_len=32, batch_size=8, steps=1, learning_rate=Constant(1e-3))
  with pytest.raises(ConfigError, match=r'Classification.*learns from texts with classes, and data has text: '
                                        'use LanguageModel or Distillation, or data of '
                     'LabelledJsonl or StandardLibraryFunctions'):
    stage('a', text, objective=Classification(), **common)
  with pytest.raises(ConfigError, match='LanguageModel.*learns from text, and data has texts with classes: '
                                        'use Classification, or'):
    stage('a', texts, **common)
  model = presets.llama(d_model=32, num_layers=2, num_heads=4, vocab_size=264)
  with pytest.raises(ConfigError, match="use Params\\('a'\\)"):
    experiment(model=model, stages=(
      stage('a', text, **common), stage('b', texts, objective=Classification(), init=Resume('a'), **common)))
