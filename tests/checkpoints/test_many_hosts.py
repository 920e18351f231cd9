"""64 hosts, simulated: `benchmarks/hosts.py` measures the same with a thousand."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.host_simulation import COLUMNS, read_array, value_of
from llm_jax.checkpoints.manifest import read_manifest
from tests.checkpoints.many_hosts_worker import ARRAYS, DEAD, HOSTS, ROWS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
  return tmp_path_factory.mktemp('hosts')


@pytest.fixture(scope='module')
def said(folder) -> list[dict]:
  """What each host found, by rank."""
  done = subprocess.run([sys.executable, '-m', 'tests.checkpoints.many_hosts_worker', str(folder)], cwd=ROOT, text=True,
                        capture_output=True, timeout=120)
  assert done.returncode == 0, done.stderr
  said = json.loads(done.stdout.splitlines()[-1])
  assert len(said) == HOSTS
  return said


def test_all_know_what_all_have_said(said):
  assert all(each['gathered'] == list(range(0, 10 * HOSTS, 10)) for each in said)
  assert all(each['first'] == [0, 'é'] for each in said)
  assert all(each['failed'] == 'the disk is full' for each in said)


def test_all_name_those_that_differ(said):
  assert all('differs from process 0 on process 5-7, 20: ' in each['different'] for each in said)


def test_each_hashes_what_it_has_written(said, folder):
  files = read_manifest(folder / 'pretrain' / '00000001').files
  read = [each['read'] for each in said]
  assert len(files) > 3 * HOSTS
  assert sorted(name for names in read for name in names) == sorted(
    read_manifest(folder / 'pretrain' / '00000002').files)
  for rank, names in enumerate(read):
    own = [name for name in names if 'ocdbt.process_' in name]
    assert own and all(f'ocdbt.process_{rank}/' in name for name in own)


def test_what_they_saved_reads_back(said, folder):
  array = read_array(folder / 'pretrain' / '00000001', 'params.block_1.w')
  expected = np.stack([value_of(rank, 1, ROWS) for rank in range(HOSTS)]).reshape(HOSTS * ROWS, COLUMNS)
  assert ARRAYS > 1
  np.testing.assert_array_equal(array, expected)


def test_all_fall_back_from_one_damaged_file(said):
  assert all((each['newest'], each['fallback']) == (2, 1) for each in said)


def test_all_hear_of_the_one_that_dies(said):
  for rank, each in enumerate(said):
    if rank == DEAD:
      continue
    assert each['lost'] and each['lost'][0].startswith(f'error: process {DEAD} has died'), (rank, each['lost'])
