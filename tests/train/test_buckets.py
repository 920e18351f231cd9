"""Runs whose data and folder lie in a bucket are bit for bit those of a local disk: as they are, killed anywhere, and
with a server that fails some requests. The servers are emulators, see `bucket_servers.py`."""
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from llm_jax.checkpoints.kill_points import KILL_POINTS
from llm_jax.runtime.buckets import BucketPath
from llm_jax.tracking.metrics import read_metrics
from tests.bucket_servers import BUCKET, KEYS, SCHEMES, bucket, one_in
from tests.train import runs

ONE_STAGE = ('--config.stages[0].steps=12', '--stage=first')


@pytest.fixture(scope='module')
def corpus(tmp_path_factory) -> pathlib.Path:
  return runs.write_corpus(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def reference(tmp_path_factory, corpus) -> pathlib.Path:
  """The same run on a local disk."""
  workdir = tmp_path_factory.mktemp('local') / 'run'
  runs.run(corpus, workdir, *ONE_STAGE)
  return workdir


@pytest.fixture(scope='module')
def whole_reference(tmp_path_factory, corpus) -> pathlib.Path:
  workdir = tmp_path_factory.mktemp('local') / 'run'
  runs.run(corpus, workdir)
  return workdir


def train(corpus, workdir: BucketPath, *flags: str, **more) -> str:
  """Trains with the text in the bucket."""
  text = workdir.parent / 'data' / 'corpus.jsonl'
  if not text.exists():
    text.write_bytes(corpus.read_bytes())
  return runs.run(corpus, workdir, *flags, experiment=runs.tiny('experiment', text), **more)


def losses(workdir) -> dict[tuple[str, int], float]:
  found = {}
  for record in read_metrics(workdir):
    if record['kind'] == 'train':
      key = record['stage'], record['step']
      assert key not in found, f'{key} was written twice'
      found[key] = record['loss']
  return found


def assert_equal(workdir: BucketPath, reference: pathlib.Path, stages=('first',)) -> None:
  for stage in stages:
    assert runs.state_hash(workdir, stage) == runs.state_hash(reference, stage)
  assert losses(workdir) == losses(reference) and losses(reference)
  assert (workdir / 'report.html').is_file()


@pytest.mark.slow
def test_a_run_in_a_bucket_is_killed_and_goes_on(corpus, reference):
  with bucket('s3', 'killed/run', one_in(10)) as workdir:
    train(corpus, workdir, *ONE_STAGE, expect=-signal.SIGKILL, kill_at='before_manifest@10')
    assert not (workdir / 'checkpoints' / 'first' / '00000010' / 'manifest.json').exists()
    output = train(corpus, workdir, *ONE_STAGE)
    assert 'first  step 12/12' in output
    assert_equal(workdir, reference)
    names = [name for name in workdir.names() if name.startswith('checkpoints/first/')]
    assert {name.split('/')[2] for name in names} == {'00000010', '00000012'}


@pytest.mark.slow
def test_a_checkpoint_is_read_from_a_bucket(corpus, reference, tmp_path):
  """The programs that read runs: `launch.sample` says the same of both."""
  from tests.bucket_servers import upload
  with bucket('s3', 'read/run') as workdir:
    upload(reference, workdir)
    for name in ('metrics.jsonl', 'time_use.jsonl'):  # which are folders of parts in a bucket
      content = (workdir / name).read_bytes()
      (workdir / name).unlink()
      (workdir / name / '00000001').write_bytes(content)
    said = []
    for place in (reference, workdir):
      command = [sys.executable, '-m', 'launch.sample', f'--checkpoint={place}', '--prompt=def', '--max_new_tokens=8',
                 '--temperature=0']
      ended = subprocess.run(command, cwd=runs.ROOT, env=runs.environment(tmp_path / 'cache', 1), capture_output=True,
                             text=True)
      assert ended.returncode == 0, ended.stderr
      said.append(ended.stdout)
    assert said[0] == said[1] and said[0]


# ---------------------------------------------------------------------------------------------- refusals
REFUSED = {
  'wrong bucket': ('s3://other/run', {}, 'there is no such bucket'),
  'no permission': (None, {'rule': lambda method, path: 403}, 'no permission'),
  'read only': (None, {'rule': lambda method, path: 403 if method in ('PUT', 'POST') else None}, 'cannot be written'),
}


def refusal(corpus, tmp_path, workdir, experiment=None) -> str:
  """The one line on stderr."""
  start = time.monotonic()
  command = runs.command(corpus, workdir, experiment=experiment)
  ended = subprocess.run(command, cwd=tmp_path, env={**runs.environment(tmp_path / 'cache', 1)}, capture_output=True,
                         text=True)
  lines = [line for line in ended.stderr.splitlines() if line.startswith('error:')]
  assert ended.returncode == 2 and len(lines) == 1 and 'Traceback' not in ended.stderr, ended.stderr
  print(f'{time.monotonic() - start:.1f} s: {lines[0]}')
  assert not (tmp_path / 'cache').exists() and not list(tmp_path.glob('*:*'))
  return lines[0]


@pytest.mark.parametrize('case', REFUSED)
def test_a_bucket_that_cannot_be_used_is_refused(corpus, tmp_path, case):
  url, more, words = REFUSED[case]
  with bucket('s3', 'x/run', **more) as workdir:
    assert words in refusal(corpus, tmp_path, url or workdir)


def test_data_that_is_not_there_is_refused(corpus, tmp_path):
  with bucket('s3', 'x/run') as workdir:
    line = refusal(corpus, tmp_path, workdir, runs.tiny('experiment', f's3://{BUCKET}/nothing.jsonl'))
    assert 'source.path' in line and 'no such object' in line


@pytest.mark.slow
@pytest.mark.parametrize('scheme', SCHEMES)
def test_an_unreachable_server_is_refused(corpus, tmp_path, monkeypatch, scheme):
  address = f'http://127.0.0.1:{runs.free_port()}'
  for name, value in {**KEYS, 'AWS_ENDPOINT_URL': address, 'TENSORSTORE_GCS_HTTP_URL': address}.items():
    monkeypatch.setenv(name, value)
  start = time.monotonic()
  assert 'does not answer' in refusal(corpus, tmp_path, f'{scheme}://{BUCKET}/run')
  assert time.monotonic() - start < 60  # 15 s on a machine that does nothing else


# ---------------------------------------------------------------------------------------------- slow
@pytest.mark.slow
@pytest.mark.parametrize('scheme', SCHEMES)
def test_both_stages(corpus, whole_reference, scheme):
  with bucket(scheme, 'whole/run') as workdir:
    train(corpus, workdir)
    assert_equal(workdir, whole_reference, ('first', 'second'))


@pytest.mark.slow
@pytest.mark.parametrize('moment', KILL_POINTS)
def test_killed_at_every_moment_of_a_save(corpus, reference, moment):
  with bucket('s3', f'{moment}/run') as workdir:
    train(corpus, workdir, *ONE_STAGE, expect=-signal.SIGKILL, kill_at=f'{moment}@12')
    train(corpus, workdir, *ONE_STAGE)
    assert_equal(workdir, reference)


@pytest.mark.slow
@pytest.mark.parametrize('scheme', SCHEMES)
def test_killed_at_random_moments(corpus, reference, scheme):
  """BUCKET_KILLS, by default 30, spread over as many runs as it takes; one request in ten fails."""
  draw = random.Random(scheme)
  kills = int(os.environ.get('BUCKET_KILLS', '30'))
  number = 0
  with bucket(scheme, 'random/run', one_in(10)) as first:
    while kills:
      workdir = first.parent / f'run{number}'
      number += 1
      for _ in range(3):
        text = first.parent / 'data' / 'corpus.jsonl'
        text.write_bytes(corpus.read_bytes())
        process = runs.start(corpus, workdir, *ONE_STAGE, experiment=runs.tiny('experiment', text))
        try:
          process.communicate(timeout=draw.uniform(2.0, 14.0))
          break  # it has ended before
        except subprocess.TimeoutExpired:
          process.kill()
          process.communicate()
          kills = max(0, kills - 1)
      train(corpus, workdir, *ONE_STAGE)
      assert_equal(workdir, reference)


@pytest.mark.slow
def test_two_processes_without_a_file_system_between_them(corpus, tmp_path):
  """Each writes its own pieces; process 0 verifies with the help of the other."""
  with bucket('s3', 'two/run', one_in(10)) as workdir:
    text = workdir.parent / 'data' / 'corpus.jsonl'
    text.write_bytes(corpus.read_bytes())
    runs.run_processes(corpus, tmp_path / 'run', 2, *ONE_STAGE, devices=1)
    runs.run_processes(corpus, workdir, 2, *ONE_STAGE, devices=1, experiment=runs.tiny('experiment', text))
    assert_equal(workdir, tmp_path / 'run')
