"""A folder in a bucket answers as a folder of this machine does, and says in one line what it cannot do."""
import pathlib
import pickle
import shutil
import time

import pytest

from llm_jax.config.errors import ConfigError
from llm_jax.runtime import buckets
from llm_jax.runtime.buckets import BucketPath, place
from llm_jax.runtime.downloads import fetch, find
from llm_jax.runtime.files import files_below, stamp, write_atomic
from tests.bucket_servers import SCHEMES, bucket, one_in, upload

FILES = ('a/b.txt', 'a/c/d.json', 'e.txt', 'a.b/f', 'a0')


@pytest.fixture(params=SCHEMES)
def folder(request):
  with bucket(request.param, 'runs/x') as found:
    yield found
    found.parent.remove_all()


def make_both(local: pathlib.Path, folder: BucketPath) -> None:
  for name in FILES:
    (local / name).parent.mkdir(parents=True, exist_ok=True)
    (local / name).write_text(name)
  upload(local, folder)


def test_a_folder_answers_as_a_local_one(tmp_path, folder):
  make_both(tmp_path, folder)
  ask = {
    'files': lambda root: {name: (root / name).read_text() for name in FILES},
    'bytes': lambda root: (root / 'e.txt').read_bytes(),
    'kinds': lambda root: [(path.relative_to(root).as_posix(), path.is_file(), path.is_dir(), path.exists())
                           for path in sorted(root.rglob('*'))],
    'globs': lambda root: [sorted(path.relative_to(root).as_posix() for path in root.glob(pattern))
                           for pattern in ('*', 'a/*', '*/*.txt', 'a/c/d.json', 'a*', 'x/*')],
    'rglob': lambda root: sorted(path.relative_to(root).as_posix() for path in root.rglob('*.json')),
    'children': lambda root: sorted(path.name for path in root.iterdir()),
    'absent': lambda root: [(root / name).exists() for name in ('b', 'a/b', 'run', 'a/b.tx')],
    'below': lambda root: list(files_below(root)),
    'parents': lambda root: ((root / 'a' / 'c').parent == root / 'a', (root / 'a').with_name('z') == root / 'z'),
  }
  for name, question in ask.items():
    assert question(folder) == question(tmp_path), name


def test_names(folder):
  assert str(folder / 'a') == f'{folder.parts[0]}//bucket/runs/x/a' and place(str(folder)) == folder == place(folder)
  assert str(place('S3://bucket/x/')) == str(place('s3:/bucket/x')) == 's3://bucket/x'
  assert pickle.loads(pickle.dumps(folder)) == folder and folder.absolute() == folder
  assert place('runs/x') == pathlib.Path('runs/x') and not isinstance(place('runs/x'), BucketPath)
  with pytest.raises(TypeError, match='lies in a bucket'):
    open(folder / 'a')
  with pytest.raises(FileNotFoundError):
    (folder / 'a').read_bytes()
  with pytest.raises(FileNotFoundError):
    (folder / 'a').unlink()


def test_files_are_replaced_and_removed(folder):
  write_atomic(folder / 'a', 'one')
  before = stamp(files_below(folder))
  assert stamp(files_below(folder)) == before
  write_atomic(folder / 'b', 'two')
  assert stamp(files_below(folder)) != before
  (folder / 'b').unlink()
  (folder.parent / 'xy').write_bytes(b'.')  # whose name begins as the folder's does
  folder.remove_all()
  assert not folder.exists() and (folder.parent / 'xy').read_bytes() == b'.'


def test_what_is_written_again_has_another_stamp():
  with bucket('s3', 'stamps') as folder:  # the emulator of gs has one generation for all
    write_atomic(folder / 'a', 'one')
    before = stamp(files_below(folder))
    write_atomic(folder / 'a', 'two')
    assert stamp(files_below(folder)) != before


def test_a_large_object_is_read_in_chunks(folder):
  for size in (1, 9, 10, 11, 20, 25):
    content = bytes(range(size))
    folder.write_bytes(content)
    assert b''.join(folder.chunks(10)) == content and max(map(len, folder.chunks(10))) <= 10


def test_files_are_fetched_once(tmp_path, folder):
  make_both(tmp_path / 'made', folder)
  names = {path: set(find(place(f'{folder}{path}'), ('.txt', '.json')))
           for path in ('', '/*.txt', '/**/*.txt', '/a/*', '/e.txt', '/nothing')}
  assert names == {'': {'a/b.txt', 'a/c/d.json', 'e.txt'}, '/*.txt': {'e.txt'}, '/**/*.txt': {'a/b.txt', 'e.txt'},
                   '/a/*': {'b.txt'}, '/e.txt': {'e.txt'}, '/nothing': set()}
  found = fetch(find(folder, ('.txt',)), tmp_path / 'cache')
  assert {name: path.read_text() for name, path in found.items()} == {name: name for name in ('a/b.txt', 'e.txt')}
  times = [path.stat().st_mtime_ns for path in found.values()]
  assert [path.stat().st_mtime_ns for path in fetch(find(folder, ('.txt',)), tmp_path / 'cache').values()] == times


def test_an_object_that_is_replaced_is_fetched_again(tmp_path):
  with bucket('s3', 'again/text.txt') as path:
    for text in ('one', 'two'):
      path.write_text(text)
      assert fetch(find(path, ()), tmp_path)['text.txt'].read_text() == text


def test_requests_that_fail_are_made_again(tmp_path):
  with bucket('s3', 'failing', one_in(5)) as folder:
    make_both(tmp_path, folder)
    assert {name: (folder / name).read_text() for name in FILES} == {name: name for name in FILES}
    folder.remove_all()
    assert not folder.exists()


@pytest.mark.parametrize('scheme', SCHEMES)
def test_a_bucket_that_is_not_there(scheme):
  with bucket(scheme, 'x'), pytest.raises(ConfigError, match=f'workdir = .{scheme}://other/run.: cannot be read'):
    place(f'{scheme}://other/run').check_access('workdir', writes=True)


def test_a_url_without_a_bucket():
  with pytest.raises(ConfigError, match='name a bucket'):
    place('s3://').check_access('workdir', writes=True)


def test_a_bucket_that_may_not_be_read_or_written():
  with bucket('s3', 'x', lambda method, path: 403) as folder:
    with pytest.raises(ConfigError, match='cannot be read .no permission'):
      folder.check_access('workdir', writes=True)
  with bucket('s3', 'x', lambda method, path: 403 if method == 'PUT' else None) as folder:
    folder.check_access('workdir', writes=False)
    with pytest.raises(ConfigError, match='cannot be written .no permission'):
      folder.check_access('workdir', writes=True)
    assert not folder.exists()


@pytest.mark.parametrize('scheme', SCHEMES)
def test_a_bucket_that_does_not_answer(monkeypatch, scheme):
  monkeypatch.setattr(buckets, 'PROBE_SECONDS', 0.5)
  with bucket(scheme, 'x', lambda method, path: time.sleep(2) or 503) as folder:
    with pytest.raises(ConfigError, match='cannot be read .it does not answer'):
      folder.check_access('workdir', writes=True)


def test_no_folder_of_this_machine_is_made(tmp_path, monkeypatch, folder):
  monkeypatch.chdir(tmp_path)
  (folder / 'a' / 'b').mkdir(parents=True)
  write_atomic(folder / 'a' / 'b' / 'c', 'x')
  assert not list(tmp_path.iterdir()) and shutil.which('true')
