"""Disks without room: one line that names the path, nothing lost, nothing twice, and the same command goes on."""
import errno
import json
import os
import shutil
import subprocess

import pytest

from llm_jax.config.errors import ConfigError
from llm_jax.config.experiment import Bytes, Jsonl
from llm_jax.data import token_store
from llm_jax.data.sources import documents
from llm_jax.data.tokenizers.base import make_tokenizer
from llm_jax.runtime.errors import FileError, explaining_full_disk
from tests.train import runs

MIB = 1 << 20
# Enough for the programs' own files, not for what the run writes after some time.
WORKDIR_KIB = (700, 1_000, 1_400, 2_000)


def full(*_):
  raise OSError(errno.ENOSPC, 'No space left on device')


def test_tokens_that_do_not_fit_name_the_folder_and_the_way_out(tmp_path, monkeypatch):
  source = documents.open_source(Jsonl(str(runs.write_corpus(tmp_path)), val_fraction=0.1), tmp_path / 'cache')
  tokenizer = make_tokenizer(Bytes(), None)
  with monkeypatch.context() as disk:
    disk.setattr(token_store, '_sync', full)
    with pytest.raises(FileError) as caught:
      token_store.open_store(source, 'train', tokenizer, tmp_path / 'cache')
  text = str(caught.value)
  assert text.startswith(str(tmp_path / 'cache' / 'tokens'))
  for part in ('the tokens of Jsonl (train) takes up to 0.', 'No space left on device', 'MiB are free there',
               'set LLM_JAX_CACHE to a folder on another disk'):
    assert part in text
  assert token_store.open_store(source, 'train', tokenizer, tmp_path / 'cache').num_documents > 50  # with room again


def test_other_errors_are_not_explained_away(tmp_path):
  with pytest.raises(PermissionError), explaining_full_disk(tmp_path, 'a file', 'make room'):
    raise PermissionError(errno.EACCES, 'Permission denied')
  with pytest.raises(ConfigError), explaining_full_disk(tmp_path, 'a file', 'make room'):
    raise ConfigError('a', 1, 'b')


# ---------------------------------------------------------------------------------------------- small disks
@pytest.fixture
def disk(tmp_path):
  """Mounts a disk of so many KiB at a folder, or gives the one that is there another size."""
  mounted = []

  def mount(folder, kib):
    if folder in mounted:
      subprocess.run(['mount', '-o', f'remount,size={kib}k', folder], check=True)
      return
    folder.mkdir()
    done = subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={kib}k', 'tmpfs', folder], capture_output=True)
    if done.returncode != 0:
      pytest.skip('only root can mount a disk')
    mounted.append(folder)

  yield mount
  for folder in mounted:
    subprocess.run(['umount', '-l', folder], check=True)


@pytest.fixture(scope='module')
def untouched(corpus, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('untouched')
  runs.run(corpus, workdir)
  return workdir


def end_of(corpus, workdir, cache, compile_cache=None) -> tuple[int, str]:
  """The exit code of a run and its last line; a traceback anywhere is an error."""
  environment = runs.environment(cache, devices=1) | ({} if compile_cache is None else {
    'JAX_COMPILATION_CACHE_DIR': str(compile_cache), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'})
  done = subprocess.run(runs.command(corpus, workdir), cwd=runs.ROOT, env=environment, stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT, text=True, timeout=300)
  assert 'Traceback' not in done.stdout, done.stdout
  return done.returncode, done.stdout.rstrip().rpartition('\n')[2]


def check_same(workdir, reference):
  for kind in ('train', 'eval', 'final'):
    records = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    found = [(r['stage'], r['step']) for r in records if r['kind'] == kind]
    assert len(found) == len(set(found)), f'{kind} twice'
  assert runs.losses(workdir) == runs.losses(reference)
  for stage in ('first', 'second'):
    assert runs.state_hash(workdir, stage) == runs.state_hash(reference, stage)


@pytest.mark.slow
@pytest.mark.parametrize('kib', WORKDIR_KIB)
def test_a_workdir_without_room(corpus, untouched, tmp_path, disk, kib):
  """While it is written, at a restart, and after room was made."""
  disk(tmp_path / 'small', kib)
  workdir = tmp_path / 'small' / 'run'
  for _ in range(2):
    code, last = end_of(corpus, workdir, corpus.parent / 'cache')
    assert code in (0, 1), last
    if code == 1:
      assert last.startswith('error: ') and str(workdir) in last and 'MiB are free there' in last
  disk(tmp_path / 'small', 200_000)
  code, last = end_of(corpus, workdir, corpus.parent / 'cache')
  assert code == 0, last
  check_same(workdir, untouched)


@pytest.mark.slow
@pytest.mark.parametrize('kib', [8, 100, 300])
def test_a_cache_without_room_for_tokens(corpus, untouched, tmp_path, disk, kib):
  disk(tmp_path / 'cache', kib)
  workdir = tmp_path / 'run'
  for _ in range(2):
    code, last = end_of(corpus, workdir, tmp_path / 'cache', tmp_path / 'compiled')
    assert code == 1 and last.startswith(f'error: {tmp_path / "cache"}'), last
    assert 'LLM_JAX_CACHE' in last and 'MiB are free there' in last
  disk(tmp_path / 'cache', 200_000)
  code, last = end_of(corpus, workdir, tmp_path / 'cache', tmp_path / 'compiled')
  assert code == 0, last
  check_same(workdir, untouched)


@pytest.mark.slow
def test_a_compile_cache_without_room_costs_time_only(corpus, untouched, tmp_path, disk):
  disk(tmp_path / 'compiled', 64)
  for _ in range(2):
    code, last = end_of(corpus, tmp_path / 'run', corpus.parent / 'cache', tmp_path / 'compiled')
    assert code == 0 and last.startswith('report: '), last
  check_same(tmp_path / 'run', untouched)


@pytest.mark.slow
def test_a_report_without_room_is_a_warning(corpus, untouched, tmp_path, disk):
  """A finished run whose disk is full: the report is written once there is room."""
  disk(tmp_path / 'small', 200_000)
  workdir = tmp_path / 'small' / 'run'
  shutil.copytree(untouched, workdir)
  half_of_it = (workdir / 'report.html').stat().st_size // 2
  (workdir / 'report.html').unlink()
  used = sum(path.stat().st_blocks * 512 for path in workdir.rglob('*'))
  disk(tmp_path / 'small', (used + half_of_it) // 1_024)
  code, last = end_of(corpus, workdir, corpus.parent / 'cache')
  assert code == 0 and 'no report was written' in last and 'No space left' in last
  assert not [name for name in os.listdir(workdir) if name.startswith('.report')]
  disk(tmp_path / 'small', 200_000)
  code, last = end_of(corpus, workdir, corpus.parent / 'cache')
  assert code == 0 and last.startswith('report: ')
  check_same(workdir, untouched)
