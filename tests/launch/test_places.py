"""URLs where a path belongs: one line and exit code 2 before anything is made, and never a folder named `gs:`."""
import os
import pathlib
import subprocess
import sys

import pytest

from llm_jax.config.errors import ConfigError
from llm_jax.config.experiment import SavedRun, TiktokenFile
from llm_jax.config.places import check_is_path, places, scheme_of

ROOT = pathlib.Path(__file__).parents[2]
URL = 'ftp://host/run'
TRAIN = ('launch.train', f'--config={ROOT}/experiments/quickstart.py')
JSONL = '--config.stages[0].data.sources=[{"weight": 1.0, "source": {"kind": "Jsonl", "path": "ftp://host/text.jsonl"}}]'
COMMANDS = {
  'workdir': (*TRAIN, f'--workdir={URL}'),
  'source': (*TRAIN, '--workdir=runs/x', JSONL),
  'sample': ('launch.sample', f'--checkpoint={URL}'),
  'evaluate': ('launch.evaluate', f'--checkpoint={URL}'),
  'report': ('launch.report', f'--workdir={URL}'),
  'convert': ('launch.convert', '--from_hf=somewhere', f'--to={URL}'),
}


def run(folder: pathlib.Path, *command: str, **settings: str) -> subprocess.CompletedProcess:
  environment = {**os.environ, 'PYTHONPATH': str(ROOT), **settings}
  return subprocess.run([sys.executable, '-m', *command], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize('name', COMMANDS)
def test_a_url_is_refused_and_no_folder_is_made(tmp_path, name):
  ended = run(tmp_path, *COMMANDS[name])
  last = ended.stderr.splitlines()[-1]
  assert ended.returncode == 2 and 'ftp://host' in last and 'Traceback' not in ended.stderr
  assert 'ftp:// cannot be read or written here' in last, last
  assert not list(tmp_path.iterdir())


def test_a_cache_at_a_url_is_refused(tmp_path):
  ended = run(tmp_path, *TRAIN, '--workdir=runs/x', LLM_JAX_CACHE=URL)
  assert ended.returncode == 2 and ended.stderr.startswith('error: LLM_JAX_CACHE') and ended.stderr.count('\n') == 1
  assert not list(tmp_path.iterdir())


def test_what_is_a_url():
  assert [scheme_of(text) for text in ('gs://b/r', 'S3://b', 'gs:/b/r', 'hdfs://h/x')] == ['gs', 's3', 'gs', 'hdfs']
  assert [scheme_of(text) for text in ('', 'runs/x', '/a', 'a:/b', 'C:/x', 'runs/gs://x', './gs:/b')] == [''] * 7
  with pytest.raises(ConfigError, match='without file://: leave that out'):
    check_is_path('workdir', 'file:///tmp/x')


def test_places_of_a_configuration():
  assert list(places((SavedRun('gs://b/run'),), 'teachers')) == [('teachers[0].workdir', 'gs://b/run', True)]
  assert list(places(TiktokenFile('gs://b/x'), 'tokenizer')) == [('tokenizer.path', 'gs://b/x', False)]
