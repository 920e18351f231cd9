"""A run whose model, tokenizer and data are names on the hub, as users start it."""
import io
import json
import pathlib
import subprocess
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import transformers

from llm_jax import hf, paths
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.data.tokenizers.base import load_tokenizer
from llm_jax.data.tokenizers.byte_level import train as train_tokenizer
from llm_jax.tracking.run_config import read_config
from tests.hf import hf_models
from tests.hub_server import Repository, serving

ROOT = pathlib.Path(__file__).parents[2]
TEXTS = [f'{i} and {i + 1} are {2 * i + 1}, and no more than that. ' * 3 for i in range(120)]
EXPERIMENT = """
from llm_jax import hf
from llm_jax.config.experiment import Checkpoints, Constant, HuggingFace, HuggingFaceData, Params, experiment, stage


def get_config(name):
  data = HuggingFaceData('us/web', 'sample', val_fraction=0.1)
  rows = dict(steps=3, seq_len=32, batch_size=4, learning_rate=Constant(1e-3))
  return experiment(
    model=hf.read_config(name), tokenizer=hf.read_tokenizer(name), checkpoints=Checkpoints(every=1),
    stages=(stage('first', data, **rows, init=HuggingFace(name)), stage('second', data, **rows, init=Params('first'))))
"""
BY_NAME = """
from llm_jax.config.experiment import Bytes, Constant, HuggingFaceData, experiment, presets, stage


def get_config():
  return experiment(
    model=presets.llama(16, 1, 1, vocab_size=264), tokenizer=Bytes(), stages=(
      stage('only', HuggingFaceData('us/web'), steps=1, seq_len=8, batch_size=1, learning_rate=Constant(1e-3)),))
"""


def parquet(texts):
  file = io.BytesIO()
  pyarrow.parquet.write_table(pyarrow.table({'text': texts}), file)
  return file.getvalue()


def model_files(folder: pathlib.Path, seed: int) -> dict[str, bytes]:
  """A Llama of transformers with a tokenizer."""
  tokenizer = train_tokenizer(TEXTS, 300, 'llama3')
  model = hf_models.make(hf_models.llama(vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.eot), seed)
  model.save_pretrained(folder)
  files = {path.name: path.read_bytes() for path in folder.iterdir()}
  return {**files, **hf.tokenizer_files(tokenizer), 'original/consolidated.safetensors': b'is not fetched'}


CARD = b"""---
configs:
- config_name: sample
  data_files: [{split: train, path: 'sample/*.parquet'}]
---
"""


@pytest.fixture(scope='module')
def hub(tmp_path_factory):
  with serving() as hub:
    folder = tmp_path_factory.mktemp('model')
    hub.model = hub.add('models', 'us/tiny', model_files(folder / 'first', 0))
    hub.data = hub.add('datasets', 'us/web', {'README.md': CARD, 'sample/0.parquet': parquet(TEXTS)})
    hub.folder = folder
    yield hub


def call(hub, home, *command, expect=0, **more) -> str:
  env = {**hub.environment(home / 'home'), 'LLM_JAX_CACHE': str(home / 'cache'), 'XLA_FLAGS': '', **more}
  done = subprocess.run([sys.executable, '-m', *map(str, command)], env=env, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == expect, done.stdout + done.stderr
  return done.stdout + done.stderr


@pytest.mark.slow  # tests/config/test_hub_names.py has the parts of it
def test_a_run_keeps_the_commits_that_it_began_with(hub, tmp_path):
  """Between its stages both repositories change; the second stage begins without a network."""
  (tmp_path / 'mine.py').write_text(EXPERIMENT)
  workdir = tmp_path / 'run'
  command = ('launch.train', f'--config={tmp_path}/mine.py:us/tiny', f'--workdir={workdir}')
  call(hub, tmp_path, *command, '--stage=first')
  began = json.loads((workdir / 'lineage.json').read_bytes())['hub']
  assert {(each['kind'], each['name'], each['revision'], each['commit']) for each in began} == {
    ('model', 'us/tiny', None, hub.model), ('dataset', 'us/web', None, hub.data)}
  assert not any('consolidated' in request for request in hub.requests)

  hub.add('models', 'us/tiny', model_files(hub.folder / 'second', 1))
  hub.add('datasets', 'us/web', {'sample/0.parquet': parquet(['other texts'] * 50)})
  call(hub, tmp_path, *command, HF_HUB_OFFLINE='1')
  assert json.loads((workdir / 'lineage.json').read_bytes())['hub'] == began
  first, second = (CheckpointStore(workdir / 'checkpoints' / name).latest_valid() for name in ('first', 'second'))
  assert first.metadata.lineage.parent == f'hf:us/tiny@{hub.model}' and second.step == 3
  assert first.metadata.data.fingerprint['data'] == second.metadata.data.fingerprint['data']
  run = read_config(workdir)
  assert run.tokenizer.revision == run.stages[0].init.revision == hub.model
  assert run.stages[0].data.sources[0].source.revision == hub.data
  assert load_tokenizer(workdir / 'tokenizer').decode([0]) is not None

  again = call(hub, tmp_path, *command, '--config.tokenizer.revision=v2', expect=2)  # there is no such revision
  assert 'has no revision' in again.splitlines()[-1]


def test_a_model_comes_in_by_name(hub, tmp_path):
  call(hub, tmp_path, 'launch.convert', '--from_hf=us/tiny', f'--to={tmp_path}/run', f'--revision={hub.model}')
  checkpoint = CheckpointStore(tmp_path / 'run' / 'checkpoints' / 'imported').latest_valid()
  wanted = dict(paths.leaves(hf.load_pretrained(hub.folder / 'first')[1]))
  for name, leaf in paths.leaves(checkpoint.read()):
    np.testing.assert_array_equal(leaf, wanted.pop(name))
  assert not wanted


def test_a_model_on_the_hub_goes_on_as_in_transformers(hub, tmp_path):
  """It is imported once; a folder is as good as a name."""
  folder = tmp_path / 'model'
  files = hub.repositories['models', 'us/tiny'].commits[hub.model]
  folder.mkdir()
  for name, content in files.items():
    if '/' not in name:
      (folder / name).write_bytes(content)
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  model = transformers.AutoModelForCausalLM.from_pretrained(folder)
  ids = tokenizer('1 and', return_tensors='pt')
  with torch.no_grad():
    out = model.generate(**ids, do_sample=False, max_new_tokens=8)
  wanted = '1 and' + tokenizer.decode(out[0, ids['input_ids'].shape[1]:], skip_special_tokens=True)
  asked = ('launch.sample', '--prompt=1 and', '--temperature=0', '--max_new_tokens=8')
  hub.repositories['models', 'us/still'] = Repository()
  hub.repositories['models', 'us/still'].commit(files)
  first = call(hub, tmp_path, *asked, '--checkpoint=us/still')
  again = call(hub, tmp_path, *asked, '--checkpoint=us/still')
  of_folder = call(hub, tmp_path, *asked, f'--checkpoint={folder}')
  assert 'imported into' in first and 'imported into' not in again
  assert all(wanted in printed for printed in (first, again, of_folder)), (wanted, first, again, of_folder)


@pytest.mark.parametrize('more', [dict(HF_HUB_OFFLINE='1'), dict(HF_ENDPOINT='http://127.0.0.1:9')])
def test_without_a_network_or_a_cache_a_name_is_refused_in_one_line(hub, tmp_path, more):
  (tmp_path / 'mine.py').write_text(EXPERIMENT)
  (tmp_path / 'named.py').write_text(BY_NAME)
  for config, words in ((f'{tmp_path}/mine.py:us/tiny', '`hf download us/tiny`'),
                        (f'{tmp_path}/named.py', '`hf download us/web --repo-type=dataset`')):
    printed = call(hub, tmp_path, 'launch.train', f'--config={config}', f'--workdir={tmp_path}/run', expect=2, **more)
    assert len(printed.splitlines()) == 1 and words in printed and 'the hub cannot be reached' in printed
