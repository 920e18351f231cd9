"""The remembered hashes of files."""
import concurrent.futures
import hashlib
import os
import threading

import pytest

from llm_jax.data import fingerprints

HOSTS = 4


@pytest.fixture
def large(tmp_path, monkeypatch):
  """A file whose hash is kept."""
  monkeypatch.setattr(fingerprints, 'SETTLED_SECONDS', -60)
  path = tmp_path / 'large'
  path.write_bytes(os.urandom(fingerprints.LARGE_BYTES + 1))
  return path


@pytest.fixture
def hashed(monkeypatch):
  """The paths that were hashed, each slowly enough for others to come meanwhile."""
  found = []
  begun = threading.Barrier(HOSTS + 1)
  original = fingerprints._hash

  def slow(path):
    found.append(path)
    with pytest.raises(threading.BrokenBarrierError):
      begun.wait(0.3)
    return original(path)

  monkeypatch.setattr(fingerprints, '_hash', slow)
  return found


def test_of_many_that_ask_at_once_one_hashes(large, hashed, tmp_path):
  ask = lambda _: fingerprints.of_file(large, tmp_path / 'cache')
  with concurrent.futures.ThreadPoolExecutor(HOSTS) as pool:
    found = set(pool.map(ask, range(HOSTS)))
  assert found == {hashlib.sha256(large.read_bytes()).hexdigest()} and len(hashed) == 1


def test_a_cache_that_cannot_be_written_costs_time(large, hashed, tmp_path):
  (tmp_path / 'cache').write_text('no folder')
  expected = hashlib.sha256(large.read_bytes()).hexdigest()
  assert [fingerprints.of_file(large, tmp_path / 'cache') for _ in range(2)] == [expected] * 2 and len(hashed) == 2
