"""No damaged checkpoint is restored silently: bits, sizes, missing, swapped and foreign files, kills in the middle."""
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llm_jax.checkpoints import checkpoint as checkpoint_module
from llm_jax.checkpoints.kill_points import KILL_POINTS
from llm_jax.checkpoints.manifest import read_manifest, verify
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.runtime.errors import CheckpointError
from tests.checkpoints.checkpoint_states import abstract, assert_same, make_metadata, make_state


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """Checkpoints of steps 10 and 20; tests work on copies."""
  folder = tmp_path_factory.mktemp('saved')
  with CheckpointStore(folder, keep=2) as store:
    for step in (10, 20):
      store.save(step, make_state(step), make_metadata(step))
  return folder


@pytest.fixture
def folder(saved, tmp_path):
  return Path(shutil.copytree(saved, tmp_path / 'stage'))


def files(path: Path) -> list[Path]:
  return sorted(p for p in path.rglob('*') if p.is_file())


def flip(path: Path, bit: int) -> None:
  content = bytearray(path.read_bytes())
  content[bit // 8] ^= 1 << bit % 8
  path.write_bytes(content)


def test_a_thousand_flipped_bits_are_all_noticed(folder):
  random.seed(0)
  everything = [path for path in files(folder / '00000020') if path.stat().st_size]
  hit = set()
  for _ in range(1_000):
    path = random.choice(everything)
    bit = random.randrange(8 * path.stat().st_size)
    flip(path, bit)
    with pytest.raises(CheckpointError) as caught:
      verify(path.parents[len(path.relative_to(folder).parts) - 2])
    assert str(path) in str(caught.value)
    flip(path, bit)
    hit.add(path)
  assert hit == set(everything)
  assert verify(folder / '00000020').metadata['step'] == 20


@pytest.mark.parametrize('damage', [lambda path: flip(path, 77), Path.unlink])
def test_damage_between_verifying_and_reading_is_noticed(folder, damage):
  """A step is compiled in between, for minutes."""
  checkpoint = CheckpointStore(folder).latest_valid()
  (folder / '00000020' / 'manifest.json').touch()  # no damage
  assert_same(checkpoint.restore(abstract(make_state(0))), make_state(20))
  largest = max(files(checkpoint.path / 'state'), key=lambda path: path.stat().st_size)
  damage(largest)
  for read in (lambda: checkpoint.restore(abstract(make_state(0))), checkpoint.read):
    with pytest.raises(CheckpointError, match=re.escape(str(largest))):
      read()


def test_damage_while_the_rest_is_verified_is_noticed(folder, monkeypatch):
  largest = max(files(folder / '00000020' / 'state'), key=lambda path: path.stat().st_size)

  def verify_and_damage(path, read):
    manifest = verify(path, read)
    flip(largest, 77)
    monkeypatch.setattr(checkpoint_module, 'verify', verify)
    return manifest

  monkeypatch.setattr(checkpoint_module, 'verify', verify_and_damage)
  checkpoint = CheckpointStore(folder).latest_valid()
  assert checkpoint.step == 20
  with pytest.raises(CheckpointError, match=re.escape(str(largest))):
    checkpoint.read()


def test_without_verification_a_flipped_bit_would_be_restored(folder, monkeypatch):
  """The mutation: were nothing verified, damage in the arrays would become parameters: the test above has a point."""
  monkeypatch.setattr(checkpoint_module, 'verify', lambda path, read: read_manifest(path))
  data = max(files(folder / '00000020' / 'state'), key=lambda path: path.stat().st_size)
  target, silent = abstract(make_state(0)), 0
  for bit in range(8 * 64, 8 * data.stat().st_size, data.stat().st_size):
    flip(data, bit)
    try:
      restored = CheckpointStore(folder).latest_valid().restore(target)
      assert_same(restored, make_state(20))
    except AssertionError:
      silent += 1
    except Exception:  # the array library noticed this one
      pass
    flip(data, bit)
  assert silent > 0


def damage_truncate(path):
  path.write_bytes(path.read_bytes()[:-1])


def damage_empty(path):
  path.write_bytes(b'')


def damage_delete(path):
  path.unlink()


def damage_flip(path):
  flip(path, 8 * (path.stat().st_size // 2))


def damage_extend(path):
  path.write_bytes(path.read_bytes() + b'\0')


@pytest.mark.parametrize('damage', [damage_truncate, damage_empty, damage_delete, damage_flip, damage_extend])
@pytest.mark.parametrize('name', ['manifest.json', 'state/manifest.ocdbt', 'state/_METADATA', 'largest'])
def test_damage_is_named_and_the_newest_valid_one_taken(folder, name, damage):
  newest = folder / '00000020'
  path = newest / name if name != 'largest' else max(files(newest), key=lambda p: p.stat().st_size)
  damage(path)
  warnings = []
  found = CheckpointStore(folder, warn=warnings.append).latest_valid()
  assert found.step == 10 and found.metadata == make_metadata(10)
  assert_same(found.restore(abstract(make_state(0))), make_state(10))
  [warning] = warnings
  assert str(path) in warning


def test_swapped_files(folder):
  a, b = sorted(files(folder / '00000020'), key=lambda p: p.stat().st_size)[-2:]
  for x, y in ((a, b), (folder / '00000010' / 'manifest.json', folder / '00000020' / 'manifest.json')):
    shutil.copytree(folder, folder.with_name('copy'))
    content = x.read_bytes()
    x.write_bytes(y.read_bytes())
    y.write_bytes(content)
    with pytest.raises(CheckpointError):
      verify(folder / '00000020')
    shutil.rmtree(folder)
    folder.with_name('copy').rename(folder)


def test_whole_checkpoints_under_each_others_names(folder):
  (folder / '00000020').rename(folder / 'x')
  (folder / '00000010').rename(folder / '00000020')
  (folder / 'x').rename(folder / '00000010')
  with pytest.raises(CheckpointError, match='holds the checkpoint of step 10'):
    CheckpointStore(folder, warn=lambda text: None).latest_valid()


@pytest.mark.parametrize('make', [lambda path: path.write_bytes(b'x'), lambda path: path.symlink_to('/etc/hostname')])
def test_a_foreign_file_is_refused(folder, make):
  make(folder / '00000020' / 'state' / 'extra')
  warnings = []
  assert CheckpointStore(folder, warn=warnings.append).latest_valid().step == 10
  assert 'state/extra: not listed' in warnings[0]


def test_all_bad_is_an_error_never_a_fresh_start(folder):
  for step in (10, 20):
    damage_flip(folder / f'{step:08d}' / 'state' / '_METADATA')
  with pytest.raises(CheckpointError, match='none of its 2 checkpoints is valid.*00000020.*00000010'):
    CheckpointStore(folder, warn=lambda text: None).latest_valid()


@pytest.fixture(scope='module')
def killed(tmp_path_factory):
  """One process per kill point, started together; each dies while it saves step 30."""
  root, script = tmp_path_factory.mktemp('killed'), Path(__file__).with_name('checkpoint_states.py')
  env = {**os.environ, 'PYTHONPATH': str(script.parents[2])}
  processes = {point: subprocess.Popen([sys.executable, str(script), str(root / point)],
                                       env={**env, 'LLM_JAX_KILL_AT': f'{point}@30'}) for point in KILL_POINTS}
  return {point: (root / point, process.wait(timeout=120)) for point, process in processes.items()}


@pytest.mark.parametrize('point', KILL_POINTS)
def test_kill_in_the_middle_of_a_save(killed, point):
  folder, code = killed[point]
  assert code == -signal.SIGKILL
  left = {path.name for path in folder.iterdir()}
  expected = {
      'before_write': {'00000010', '00000020'},
      'mid_array': {'00000010', '00000020', '00000030.saving'},
      'before_manifest': {'00000010', '00000020', '00000030.saving'},
      'before_commit': {'00000010', '00000020', '00000030.saving'},
      'after_commit': {'00000010', '00000020', '00000030'},
      'mid_gc': {'00000010.deleting', '00000020', '00000030'}}
  assert left == expected[point]  # so the kill landed in its window
  assert (folder / '00000030.saving' / 'state').exists() == (point in ('before_manifest', 'before_commit'))
  assert (folder / '00000030.saving' / 'manifest.json').exists() == (point == 'before_commit')

  with CheckpointStore(folder, keep=2) as store:
    found = store.latest_valid()
    assert found.step == (30 if point in ('after_commit', 'mid_gc') else 20)
    assert found.metadata == make_metadata(found.step * 4)
    assert_same(found.restore(abstract(make_state(0, rows=4096))), make_state(found.step, rows=4096))
    store.save(found.step + 10, make_state(found.step + 10), make_metadata(), wait=True)
  assert {path.name for path in folder.iterdir()} == {f'{found.step:08d}', f'{found.step + 10:08d}'}


def test_killed_between_the_two_renames_that_replace_a_step(folder):
  (folder / '00000020').rename(folder / '00000020.old')
  with CheckpointStore(folder, keep=1) as store:
    found = store.latest_valid()
    assert found.step == 20 and store.steps() == [20, 10]
    assert_same(found.restore(abstract(make_state(0))), make_state(20))
    store.save(20, make_state(20), make_metadata(), wait=True)
  assert [path.name for path in folder.iterdir()] == ['00000020']
