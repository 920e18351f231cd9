"""Data sets by their name on the hub: the rows of `datasets`, at the commit that was pinned, also without a network.

Each test asks in a process of its own: `huggingface_hub` reads its addresses when it is imported.
"""
import io
import json
import pathlib
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from tests.hub_server import serving

ROOT = pathlib.Path(__file__).parents[3]
CARD = b"""---
configs:
- config_name: default
  data_files: "data/*.parquet"
- config_name: sample
  data_files:
  - split: train
    path: sample/train-*.parquet
  - split: test
    path: sample/test-*.parquet
---
"""
TEXTS = [f'row {i}: na\u00efve text\n' * (1 + i % 3) for i in range(12)]
READ = """
import json, sys
from llm_jax.config.errors import ConfigError
from llm_jax.config.experiment import HuggingFaceData
from llm_jax.data.sources.documents import open_source
cache, with_theirs, wanted = json.loads(sys.argv[1])
answers = []
for name, config, split, revision in wanted:
  source = HuggingFaceData(name, config, split=split, column='body', revision=revision, val_fraction=0.0)
  try:
    opened = open_source(source, cache)
    found = {'ours': [text for _, text in opened.documents('train')], 'fingerprint': opened.fingerprint}
    if with_theirs:
      import datasets
      found['theirs'] = datasets.load_dataset(name, config, split=split, revision=revision)['body'][:]
  except ConfigError as error:
    found = {'error': str(error)}
  answers.append(found)
print(json.dumps(answers))
"""


def parquet(texts):
  file = io.BytesIO()
  pyarrow.parquet.write_table(pyarrow.table({'id': list(range(len(texts))), 'body': texts}), file, row_group_size=2)
  return file.getvalue()


def lines(texts):
  return ''.join(json.dumps({'body': text}) + '\n' for text in texts).encode()


@pytest.fixture(scope='module')
def hub():
  with serving() as hub:
    hub.first = hub.add('datasets', 'us/web', {
      'README.md': CARD, 'data/a.parquet': parquet(['of the default']),
      'sample/train-00001.parquet': parquet(TEXTS[5:]),
      'sample/train-00000.parquet': parquet(TEXTS[:5]), 'sample/test-00000.parquet': parquet(['a test'])})
    hub.add('datasets', 'us/lines', {
      'train.jsonl': lines(TEXTS[:4]), 'test.jsonl': lines(['a test'])})
    hub.add('datasets', 'us/packed', {'data/train.jsonl.zst': zstandard.compress(lines(TEXTS))})
    hub.add('datasets', 'us/table', {'train.csv': b'id,body\n1,a\n'})
    hub.add('datasets', 'us/closed', {'train.jsonl': lines(TEXTS)})
    hub.repositories['datasets', 'us/closed'].is_gated = True
    yield hub


def read(hub, tmp_path, *wanted, with_theirs=False, **environment):
  """What is found of each (name, configuration, split, revision)."""
  arguments = json.dumps([str(tmp_path / 'cache'), with_theirs, wanted])
  env = {**hub.environment(tmp_path / 'home'), 'LLM_JAX_CACHE': str(tmp_path / 'cache'), **environment}
  done = subprocess.run([sys.executable, '-c', READ, arguments], env=env, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def test_rows_are_those_of_datasets_in_their_order(hub, tmp_path):
  wanted = {
    ('us/web', 'sample', 'train', None): TEXTS, ('us/web', 'sample', 'test', None): ['a test'],
    ('us/web', None, 'train', None): ['of the default'], ('us/lines', None, 'train', None): TEXTS[:4],
    ('us/packed', None, 'train', None): TEXTS}
  for found, texts in zip(read(hub, tmp_path, *wanted, with_theirs=True), wanted.values(), strict=True):
    assert found['ours'] == found['theirs'] == texts


def test_a_commit_stays_what_it_was_also_without_a_network(hub, tmp_path):
  """The cache holds one split of one configuration, and neither the others nor where the branch stands."""
  pinned, newest = ('us/web', 'sample', 'train', hub.first), ('us/web', 'sample', 'train', None)
  [before] = read(hub, tmp_path, pinned)
  assert before['ours'] == TEXTS
  hub.requests.clear()
  assert read(hub, tmp_path, pinned) == [before] and not hub.requests  # a commit never changes: nothing is asked for
  (tmp_path / 'cache').rename(tmp_path / 'gone')
  assert read(hub, tmp_path, pinned, newest, HF_HUB_OFFLINE='1') == [before, before]
  assert read(hub, tmp_path, newest, HF_ENDPOINT='http://127.0.0.1:9') == [before]


def test_what_is_not_there_is_refused_in_one_line(hub, tmp_path):
  wanted = {
    ('us/web', 'smaple', 'train', None): "BuilderConfig 'smaple' not found. Available: ['default', 'sample']",
    ('us/web', 'sample', 'valid', None): "split = 'valid': us/web has no such split; use one of train, test",
    ('us/web', 'sample', 'train', 'v9'): "dataset = 'us/web': it has no revision 'v9': name a branch, a tag",
    ('us/none', None, 'train', None): "dataset = 'us/none': the hub shows no such data set: correct the name",
    ('us/closed', None, 'train', None): 'accept its terms there, and log in with `hf auth login`',
    ('us/table', None, 'train', None): 'train.csv is neither Parquet nor JSON lines'}
  for found, words in zip(read(hub, tmp_path, *wanted), wanted.values(), strict=True):
    assert words in found['error'] and '\n' not in found['error']


def test_without_a_network_and_a_cache_one_line_says_what_to_do(hub, tmp_path):
  for environment in (dict(HF_HUB_OFFLINE='1'), dict(HF_ENDPOINT='http://127.0.0.1:9')):
    [found] = read(hub, tmp_path, ('us/web', 'sample', 'train', None), **environment)
    assert 'the hub cannot be reached' in found['error'] and '\n' not in found['error']
    assert '`hf download us/web --repo-type=dataset`' in found['error']
