"""Names on the hub in a configuration, and the commits that a run is pinned to."""
import dataclasses
import json

import pytest

from launch.experiment_file import check_files
from llm_jax.config import packages, presets
from llm_jax.config.errors import ConfigError
from llm_jax.config.experiment import (
  Constant,
  HuggingFace,
  HuggingFaceData,
  HuggingFaceFile,
  Params,
  Run,
  StandardLibrary,
  mix,
  stage,
)
from llm_jax.config.hub_names import HubName, hub_names, is_hub_name, pinned
from llm_jax.config.schema import from_json, to_json
from llm_jax.train import run as run_module

MODEL, DATA, NEWEST = (HubName('model', 'us/tiny', 'v1'), HubName('dataset', 'us/web', 'v2'),
                       HubName('dataset', 'us/web'))


def make_run(**changes):
  rows = dict(steps=1, seq_len=8, batch_size=1, learning_rate=Constant(1e-3))
  stages = (
    stage('first', mix(HuggingFaceData('us/web', revision='v2'), StandardLibrary()), **rows,
          init=HuggingFace('us/tiny', revision='v1')),
    stage('second', HuggingFaceData('us/web', 'sample'), **rows, init=Params('first')))
  fields = dict(tokenizer=HuggingFaceFile('us/tiny', revision='v1')) | changes
  return Run(presets.llama(16, 1, 1, vocab_size=257), stages, **fields)


def test_what_is_a_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'us' / 'here').mkdir(parents=True)
  assert is_hub_name('us/tiny') and is_hub_name('Qwen/Qwen3-0.6B')
  for path in ('us/here', 'folder', '/us/tiny', './us/tiny', '~/tiny', 'a/b/c', 'us/', 'us/../x', ''):
    assert not is_hub_name(path), path


def test_every_name_is_found_once_and_pinned():
  run = make_run()
  assert set(hub_names(run)) == {MODEL, DATA, NEWEST} and len(list(hub_names(run))) == 3
  after = pinned(run, {MODEL: 'a' * 40, DATA: 'b' * 40, NEWEST: 'c' * 40})
  assert after.tokenizer.revision == after.stages[0].init.revision == 'a' * 40
  assert after.stages[0].data.sources[0].source.revision == 'b' * 40
  assert after.stages[1].data.sources[0].source == HuggingFaceData('us/web', 'sample', revision='c' * 40)
  assert after.stages[0].data.sources[1] == run.stages[0].data.sources[1]
  assert from_json(to_json(after)) == after and after != run
  assert pinned(run.model, {}) is run.model


def test_a_run_that_has_begun_keeps_its_commits(tmp_path, monkeypatch):
  run, asked = make_run(), []
  monkeypatch.setattr(run_module.hub, 'commit_of', lambda name: asked.append(name) or f'{len(asked)}' * 40)
  noted = [{**dataclasses.asdict(name), 'commit': name.kind} for name in (MODEL, NEWEST)]
  (tmp_path / 'lineage.json').write_text(json.dumps({'hub': noted}))
  assert run_module.pin(run, tmp_path) == ['1' * 40, '2' * 40, '3' * 40]  # nothing is saved: nothing is kept
  asked.clear()
  (tmp_path / 'checkpoints' / 'first' / '00000001').mkdir(parents=True)
  names = list(hub_names(run))
  commits = dict(zip(names, run_module.pin(run, tmp_path), strict=True))
  assert commits == {MODEL: 'model', NEWEST: 'dataset', DATA: '1' * 40} and asked == [DATA]
  (tmp_path / 'lineage.json').write_text('damaged')
  assert len(set(run_module.pin(run, tmp_path))) == 3


def test_a_name_needs_the_package_that_asks_for_it(monkeypatch):
  find = packages.importlib.util.find_spec
  hidden = lambda name: None if name == 'huggingface_hub' else find(name)
  check_files(make_run(), 'mine.py')
  monkeypatch.setattr(packages.importlib.util, 'find_spec', hidden)
  with pytest.raises(ConfigError, match=r"HuggingFaceData.*pip install 'llm_jax\[hub\]'"):
    check_files(make_run(), 'mine.py')
