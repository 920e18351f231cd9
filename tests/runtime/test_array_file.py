"""Numbers read from a file piece by piece, against numpy; a file that is cut short is an error, not a crash."""
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from llm_jax.runtime.array_file import ArrayFile
from llm_jax.runtime.errors import FileError

CUT = """
import os, sys
import numpy as np
ids = np.memmap(sys.argv[1], np.uint16, 'r')
os.truncate(sys.argv[1], 4_096)
print(ids[90_000])
"""


@pytest.fixture
def numbers(tmp_path):
  expected = np.random.default_rng(0).integers(0, 60_000, 100_000).astype('<u2')
  expected.tofile(tmp_path / 'tokens')
  return ArrayFile(tmp_path / 'tokens', expected.dtype), expected


@pytest.mark.parametrize('place', [
  slice(None), slice(10, 20), slice(99_990, 200_000), slice(20, 10), slice(-5, None), 0, -1, 77, np.int64(5),
  np.array([5, 5, 99_999, 0]), np.array([[1, 2], [3, -4]]), np.arange(0), range(3, 9),
])
def test_places_are_numpys(numbers, place):
  found, expected = numbers
  place_of_numpy = list(place) if isinstance(place, range) else place
  np.testing.assert_array_equal(found[place], expected[place_of_numpy])
  assert np.asarray(found[place]).dtype == expected.dtype


def test_the_whole(numbers):
  found, expected = numbers
  assert len(found) == len(expected) and found.sum(dtype=np.int64) == expected.sum(dtype=np.int64)
  np.testing.assert_array_equal(np.asarray(found), expected)
  np.testing.assert_array_equal(np.concatenate(list(found.chunks())), expected)


def test_a_file_that_is_cut_short_is_named(numbers):
  found, expected = numbers
  os.truncate(found.path, 4_096)
  np.testing.assert_array_equal(found[:2_048], expected[:2_048])
  with pytest.raises(FileError, match='tokens: ends at byte 4096 of 200000: it was cut short while this run read it'):
    found[2_000:2_100]
  with pytest.raises(FileError, match='tokens: ends at byte'):
    found[90_000]


def test_a_mapped_file_would_end_the_program(numbers):
  """The mutation: what the error above stands for."""
  done = subprocess.run([sys.executable, '-c', CUT, str(numbers[0].path)], capture_output=True)
  assert done.returncode == -signal.SIGBUS
