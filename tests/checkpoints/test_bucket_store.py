"""Checkpoints in a bucket: bit for bit, committed by the manifest alone, verified, and exchanged with local ones."""
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from llm_jax.checkpoints import zarr_arrays
from llm_jax.checkpoints.checkpoint import read_params
from llm_jax.checkpoints.folders import clear_interrupted
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.checkpoints.zarr_arrays import chunk_shape
from llm_jax.runtime.errors import CheckpointError
from tests.bucket_servers import bucket, download, one_in, upload
from tests.checkpoints.checkpoint_states import abstract, assert_same, make_metadata, make_state


@pytest.fixture(params=['s3', pytest.param('gs', marks=pytest.mark.slow)])
def folder(request):
  with bucket(request.param, 'run/checkpoints/a') as found:
    yield found
    found.remove_all()


@pytest.fixture
def s3_folder():
  with bucket('s3', 'run/checkpoints/a') as found:
    yield found
    found.remove_all()


def save(folder, *steps: int, **settings) -> None:
  with CheckpointStore(folder, **settings) as store:
    for step in steps:
      store.save(step, make_state(step), make_metadata(step * 4))


def test_a_state_comes_back_bit_for_bit(folder):
  save(folder, 10, 20, keep=1)
  store = CheckpointStore(folder)
  assert store.steps() == [20]
  found = store.latest_valid()
  assert found.metadata == make_metadata(80)
  assert_same(found.restore(abstract(make_state(20))), make_state(20))
  assert_same(jax.tree.map(jnp.asarray, found.read()), make_state(20).params)
  assert not [name for name in folder.names() if name.startswith('00000010')]


def test_onto_another_mesh(s3_folder, monkeypatch):
  monkeypatch.setattr(zarr_arrays, 'MOST_BYTES', 300)  # several pieces a shard
  mesh = jax.make_mesh((4, 2), ('a', 'b'), axis_types=(AxisType.Auto,) * 2)
  values = {'w': np.arange(64 * 32, dtype=np.float32).reshape(64, 32), 's': np.float32(3.5),
            'q': np.arange(64, dtype=np.int8).reshape(8, 8).astype(jnp.int4), 'zero': np.zeros((8, 3), np.float32)}
  place = lambda specs: {name: jax.device_put(values[name], NamedSharding(mesh, spec)) for name, spec in specs.items()}
  saved = place({'w': P('a', 'b'), 's': P(), 'q': P('b'), 'zero': P(None)})
  with CheckpointStore(s3_folder) as store:
    store.save(1, {'params': saved}, make_metadata(4), wait=True)
  checkpoint = CheckpointStore(s3_folder).latest_valid()
  assert_same(checkpoint.read(), values)
  other = place({'w': P('b'), 's': P(), 'q': P(None, 'a'), 'zero': P('a')})
  found = checkpoint.restore({'params': abstract(other)})['params']
  assert_same(found, other)
  assert {name: found[name].sharding for name in found} == {name: other[name].sharding for name in other}


def test_pieces_divide_a_shard():
  for shard, itemsize, expected in (((), 4, ()), ((3,), 4, (3,)), ((1 << 14, 1 << 13), 4, (1 << 12, 1 << 13)),
                                    ((7, 1 << 26), 1, (1, 1 << 26)), ((3, 1 << 29), 1, (1, 1 << 27)),
                                    ((0, 4), 4, (1, 4))):
    assert chunk_shape(shard, itemsize) == expected


def test_a_checkpoint_without_manifest_is_none(s3_folder):
  save(s3_folder, 10, 20, keep=2)
  (s3_folder / '00000020' / 'manifest.json').unlink()
  assert CheckpointStore(s3_folder).steps() == [10]
  clear_interrupted(s3_folder)
  assert not (s3_folder / '00000020').exists() and CheckpointStore(s3_folder).latest_valid().step == 10


def test_a_step_is_saved_again_beside_the_old_one(s3_folder):
  save(s3_folder, 10, 20, keep=2)
  (s3_folder / '00000020' / 'state' / 'params' / 'embedding' / 'w' / '.zarray').write_bytes(b'{}')
  store = CheckpointStore(s3_folder, keep=2, warn=lambda text: None)
  assert store.latest_valid().step == 10
  save(s3_folder, 20, keep=2)
  assert CheckpointStore(s3_folder).latest_valid().path.name == '00000020.1'
  save(s3_folder, 30, keep=1)
  assert CheckpointStore(s3_folder).steps() == [30]


def test_flipped_bits_are_found(s3_folder):
  save(s3_folder, 10)
  draw = random.Random(0)
  names = s3_folder.names()
  for _ in range(12):
    path = s3_folder / draw.choice(names)
    content = path.read_bytes()
    at = draw.randrange(len(content))
    path.write_bytes(content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1:])
    with pytest.raises(CheckpointError, match='none of its 1 checkpoints is valid'):
      CheckpointStore(s3_folder, warn=lambda text: None).latest_valid()
    path.write_bytes(content)
  assert CheckpointStore(s3_folder).latest_valid().step == 10


def test_what_changes_while_it_is_read_is_found(s3_folder):
  save(s3_folder, 10)
  found = CheckpointStore(s3_folder).latest_valid()
  path = next(found.path / name for name in found.path.names() if name.endswith('w/0.0'))
  path.write_bytes(path.read_bytes()[:-1] + b'x')
  with pytest.raises(CheckpointError, match='changed since it was written'):
    found.read()


def test_copies_from_and_to_a_folder(s3_folder, tmp_path):
  save(tmp_path / 'here', 10)
  upload(tmp_path / 'here', s3_folder)
  assert_same(CheckpointStore(s3_folder).latest_valid().restore(abstract(make_state(10))), make_state(10))
  s3_folder.remove_all()
  save(s3_folder, 20)
  download(s3_folder, tmp_path / 'copy')
  assert_same(CheckpointStore(tmp_path / 'copy').latest_valid().restore(abstract(make_state(20))), make_state(20))
  assert_same(jax.tree.map(jnp.asarray, read_params(tmp_path / 'copy' / '00000020')), make_state(20).params)


@pytest.mark.slow
def test_requests_that_fail_are_made_again():
  with bucket('s3', 'failing', one_in(10)) as folder:
    save(folder, 10, 20, keep=1)
    found = CheckpointStore(folder).latest_valid()
    assert_same(found.restore(abstract(make_state(20))), make_state(20))
    folder.remove_all()


def test_a_bucket_that_takes_nothing_fails_the_save():
  with bucket('s3', 'full', lambda method, path: 403 if method == 'PUT' and '/state/' in path else None) as folder:
    with pytest.raises(CheckpointError, match='step 10 was not saved'), CheckpointStore(folder) as store:
      store.save(10, make_state(10), make_metadata(40), wait=True)
    assert not folder.exists()
