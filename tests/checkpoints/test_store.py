"""What is saved comes back bit for bit, on any mesh, from the newest checkpoint; what cannot be saved says so."""
import contextlib
import functools
import os
import resource
import shutil
import threading
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint._src.futures import future

from llm_jax.checkpoints.checkpoint import read_params
from llm_jax.checkpoints.manifest import read_manifest, write_manifest
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.runtime.errors import CheckpointError
from tests.checkpoints.checkpoint_states import abstract, assert_same, make_metadata, make_state


@contextlib.contextmanager
def no_privileges():
  """Root may write anywhere; be nobody for a while."""
  user = os.geteuid()
  if user == 0:
    os.seteuid(65_534)
  try:
    yield
  finally:
    os.seteuid(user)


def test_restored_state_is_bitwise_what_was_saved(tmp_path):
  metadata = make_metadata(40, config={'seed': 0}, start_metrics={'needles_256': [0.5, 1.0]}, eval_data={'data': 'x'})
  with CheckpointStore(tmp_path / 'stage', keep=2) as store:
    store.save(7, make_state(7), metadata)
    store.wait()
    found = store.latest_valid()
    assert (found.step, found.metadata, found.path.name) == (7, metadata, '00000007')
    assert_same(found.restore(abstract(make_state(0))), make_state(7))


def test_metadata_are_those_at_the_time_of_the_call(tmp_path):
  config = {'seed': 40}
  metadata = make_metadata(config=config)
  with CheckpointStore(tmp_path) as store:
    store.save(1, make_state(1), metadata)
    config['seed'] = 44
    store.wait()
    assert store.latest_valid().metadata == make_metadata(config={'seed': 40})
    with pytest.raises(TypeError):
      store.save(2, make_state(2), make_metadata(config={'path': Path('x')}))


def test_metadata_of_another_version_are_refused_in_one_line(tmp_path):
  with CheckpointStore(tmp_path, warn=lambda text: None) as store:
    store.save(1, make_state(1), make_metadata(), wait=True)
    manifest = read_manifest(tmp_path / '00000001')
    write_manifest(tmp_path / '00000001', {**manifest.metadata, 'lineage': {'parent': None}})
    with pytest.raises(CheckpointError, match='00000001: its metadata are of another version of llm_jax .*KeyError'):
      store.latest_valid()


def test_nothing_saved_is_none(tmp_path):
  assert CheckpointStore(tmp_path / 'absent').latest_valid() is None


def test_latest_is_the_highest_step_whatever_the_clock_says(tmp_path):
  with CheckpointStore(tmp_path, keep=9) as store:
    for step in (3, 12, 5):
      store.save(step, make_state(step), make_metadata())
  for step, day in ((3, 2_000), (5, 3_000), (12, 1)):
    os.utime(tmp_path / f'{step:08d}', (day * 86_400, day * 86_400))
  assert store.steps() == [12, 5, 3]
  assert store.latest_valid().step == 12


def test_named_steps_stay_beside_the_newest(tmp_path):
  with CheckpointStore(tmp_path, keep=2, pinned=(10, 30)) as store:
    for step in (10, 20, 30, 40, 50, 60):
      store.save(step, make_state(step), make_metadata(), wait=True)
    assert store.steps() == [60, 50, 30, 10]
    assert store.at(30).step == 30
    with pytest.raises(CheckpointError, match='has no checkpoint of step 20, only of 60, 50, 30, 10'):
      store.at(20)


def test_keeps_the_newest(tmp_path):
  with CheckpointStore(tmp_path, keep=2) as store:
    for step in (1, 2, 3, 4):
      store.save(step, make_state(step), make_metadata())
    store.wait()
    assert store.steps() == [4, 3]
  assert sorted(path.name for path in tmp_path.iterdir()) == ['00000003', '00000004']


def test_what_is_averaged_does_not_depend_on_where_the_run_stopped(tmp_path):
  kept = {}
  for name, steps in (('straight', (4, 8, 12, 14)), ('stopped', (3, 4, 8, 9, 10, 12, 13, 14))):
    with CheckpointStore(tmp_path / name, keep=3, every=4) as store:
      for step in steps:
        store.save(step, make_state(step), make_metadata(), wait=True)
        if step == 10:
          assert store.steps() == [10, 8, 4]
      kept[name] = [found.step for found in store.newest(3)], store.steps()
  assert kept['straight'] == kept['stopped'] == ([14, 12, 8], [14, 12, 8])


def test_a_step_that_is_there_twice_counts_once(tmp_path):
  with CheckpointStore(tmp_path, keep=2) as store:
    for step in (1, 2):
      store.save(step, make_state(step), make_metadata(), wait=True)
    shutil.copytree(tmp_path / '00000002', tmp_path / '00000002.old')  # as a kill leaves it
    assert [found.step for found in store.newest(2)] == [2, 1]


def test_a_damaged_higher_step_does_not_push_out_the_one_just_saved(tmp_path):
  with CheckpointStore(tmp_path, keep=1, warn=lambda text: None) as store:
    store.save(20, make_state(20), make_metadata(), wait=True)
    (tmp_path / '00000020' / 'manifest.json').unlink()
    store.save(15, make_state(15), make_metadata(), wait=True)
    assert store.steps() == [20, 15]
    assert store.latest_valid().step == 15
    store.save(20, make_state(20), make_metadata(1), wait=True)
    assert store.steps() == [20]
    assert store.latest_valid().metadata == make_metadata(1)


def test_same_step_again_replaces_it(tmp_path):
  with CheckpointStore(tmp_path) as store:
    store.save(5, make_state(5), make_metadata(final=False))
    store.save(5, make_state(6), make_metadata(final=True), wait=True)
    found = store.latest_valid()
    assert store.steps() == [5] and found.metadata == make_metadata(final=True)
    assert_same(found.restore(abstract(make_state(0))), make_state(6))


def test_donating_the_state_after_save_does_not_change_what_is_saved(tmp_path):
  """On CPU, numpy and jax may share memory; the step that runs while arrays are written overwrites donated ones."""
  @functools.partial(jax.jit, donate_argnums=0)
  def step(state):
    return jax.tree.map(lambda x: x + 1, state)

  state = {'params': {f'w{i}': jnp.full((512, 1024), 0.0) for i in range(8)}}
  with CheckpointStore(tmp_path) as store:
    store.save(1, state, make_metadata())
    for _ in range(5):
      state = step(state)
    store.wait()
    assert all((w == 0).all() for w in store.latest_valid().read().values())


@pytest.mark.parametrize('mesh_shape', [(2, 4), (8, 1), (1, 1)])
def test_another_mesh(tmp_path, mesh_shape):
  def place(state, shape, spec):
    devices = np.asarray(jax.devices()[:shape[0] * shape[1]]).reshape(shape)
    mesh = jax.sharding.Mesh(devices, ('fsdp', 'tensor'), axis_types=(AxisType.Auto,) * 2)
    return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, spec if x.shape == (64, 32) else P())), state)

  with CheckpointStore(tmp_path) as store:
    store.save(1, place(make_state(1), (4, 2), P('fsdp', 'tensor')), make_metadata(), wait=True)
    target = abstract(place(make_state(0), mesh_shape, P('tensor', 'fsdp')))
    restored = store.latest_valid().restore(target)
  assert_same(jax.device_get(restored), jax.device_get(make_state(1)))
  assert restored.params['embedding']['w'].sharding == target.params['embedding']['w'].sharding


def test_mismatches_name_the_leaves(tmp_path):
  with CheckpointStore(tmp_path) as store:
    store.save(1, make_state(1), make_metadata(), wait=True)
    found = store.latest_valid()
  wanted = abstract(make_state(1))
  w = wanted.params['embedding']['w']
  other = {'embedding': {'w': jax.ShapeDtypeStruct(w.shape, jnp.bfloat16)},
           'blocks': {'block_0': {'b': jax.ShapeDtypeStruct((4, 16), jnp.bfloat16)}}, 'head': {'w': w}}
  with pytest.raises(CheckpointError) as caught:
    found.restore(wanted.replace(params=other))
  for part in ('params/embedding/w is float32[64, 32] in the checkpoint, bfloat16[64, 32] here',
               'params/blocks/block_0/b is bfloat16[3, 16] in the checkpoint, bfloat16[4, 16] here',
               'params/head/w is not in the checkpoint'):
    assert part in str(caught.value)
  with pytest.raises(CheckpointError, match='opt_state/0/count is only in the checkpoint'):
    found.restore(wanted.replace(opt_state=()))


def test_read_params_needs_neither_model_nor_optimizer(tmp_path):
  with CheckpointStore(tmp_path) as store:
    store.save(1, make_state(1), make_metadata(), wait=True)
    path = store.latest_valid().path
  params = make_state(1).params
  assert_same(read_params(path), jax.device_get(params))
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(read_params(path)))
  assert_same(read_params(path, abstract=abstract(params)), params)
  assert_same(read_params(path, keys=('params', 'embedding')), jax.device_get(params['embedding']))
  with pytest.raises(CheckpointError, match='holds no ema, only opt_state, params, step'):
    read_params(path, keys=('ema',))


def test_disk_full_leaves_the_previous_checkpoint_and_says_so(tmp_path):
  """A limit on file size stands for a full disk: the write fails in the same places."""
  store = CheckpointStore(tmp_path)
  store.save(1, make_state(1), make_metadata(), wait=True)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
  try:
    with pytest.raises(CheckpointError, match='step 2 was not saved .*the checkpoints before it are intact'):
      store.save(2, make_state(2, rows=65_536), make_metadata(), wait=True)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert store.latest_valid().step == 1
  store.save(3, make_state(3), make_metadata(), wait=True)  # and goes on once there is room
  assert store.latest_valid().step == 3
  assert [path.name for path in tmp_path.iterdir()] == ['00000003']
  store.close()


def test_a_save_may_take_hours_and_the_clock_may_be_set_meanwhile(tmp_path, monkeypatch):
  looks, seen = threading.local(), []

  def clock():  # of each thread's own: an hour later whenever it looks, for four days
    looks.count = min(getattr(looks, 'count', 0) + 1, 96)
    seen.append(time.time() + 3_600 * looks.count)
    return seen[-1]

  with CheckpointStore(tmp_path) as store:
    # Where Orbax waits for the arrays. It waits 20 minutes for their folder to be made, which no option changes.
    monkeypatch.setattr(future, 'time', types.SimpleNamespace(time=clock))
    store.save(1, make_state(1), make_metadata(), wait=True)
    assert len(seen) > 1
    assert_same(store.latest_valid().restore(abstract(make_state(0))), make_state(1))


def test_disk_full_at_the_manifest(tmp_path, monkeypatch):
  def full(*args):
    raise OSError(28, 'No space left on device')

  store = CheckpointStore(tmp_path)
  store.save(1, make_state(1), make_metadata(), wait=True)
  monkeypatch.setattr('llm_jax.checkpoints.saver.write_manifest', full)
  store.save(2, make_state(2), make_metadata())
  with pytest.raises(CheckpointError, match='disk full.*No space left'):
    store.close()
  assert store.latest_valid().step == 1


def test_read_only_folder(tmp_path):
  folder = tmp_path / 'stage'
  with CheckpointStore(folder) as store:
    store.save(1, make_state(1), make_metadata(), wait=True)
    folder.chmod(0o555)
    for parent in (tmp_path, *tmp_path.parents[:2]):
      parent.chmod(0o755)
    with no_privileges(), pytest.raises(CheckpointError, match=f'{Path(folder).name}.*step 2 was not saved'):
      store.save(2, make_state(2), make_metadata(), wait=True)
    folder.chmod(0o755)
    assert store.latest_valid().step == 1
