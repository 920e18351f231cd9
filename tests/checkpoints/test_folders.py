"""Folders that were moved and linked back, names that are not ours, readers beside a run that saves."""
import contextlib
import itertools
import os
import shutil
import threading
import time

import pytest

from llm_jax.checkpoints import store as store_module
from llm_jax.checkpoints.checkpoint import open_checkpoint
from llm_jax.checkpoints.folders import CommittedFolder, Retention, hold
from llm_jax.checkpoints.manifest import read_manifest, write_manifest
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.runtime.errors import CheckpointError
from tests.checkpoints.checkpoint_states import abstract, assert_same, make_metadata, make_state


def save(store: CheckpointStore, *steps: int, **options) -> None:
  for step in steps:
    store.save(step, make_state(step), make_metadata(), wait=True, **options)


def names(folder) -> list[str]:
  return sorted(path.name for path in folder.iterdir())


def test_a_linked_checkpoint_is_read_and_its_link_alone_is_deleted(tmp_path):
  stage, disk = tmp_path / 'stage', tmp_path / 'disk'
  disk.mkdir()
  with CheckpointStore(stage, keep=2) as store:
    save(store, 1, 2)
    shutil.move(stage / '00000001', disk)
    (stage / '00000001').symlink_to(disk / '00000001')
    assert [found.step for found in store.newest(2)] == [2, 1]
    save(store, 3, 4)
    assert names(stage) == ['00000003', '00000004'] and names(disk) == ['00000001']


def test_a_step_is_saved_again_over_a_link_and_over_a_file(tmp_path):
  stage, disk = tmp_path / 'stage', tmp_path / 'disk'
  disk.mkdir()
  with CheckpointStore(stage, keep=3) as store:
    save(store, 1)
    shutil.move(stage / '00000001', disk)
    (stage / '00000001').symlink_to(disk / '00000001')
    (stage / '00000002').symlink_to(tmp_path / 'gone')
    (stage / '00000003').write_text('not a folder')
    save(store, 1, 2, 3)
    assert store.steps() == [3, 2, 1] and not (stage / '00000001').is_symlink() and names(disk) == ['00000001']
    assert names(stage) == ['00000001', '00000002', '00000003']


@pytest.mark.parametrize('name', ['00000005.saving', '00000001.deleting', '00000001.old.deleting'])
@pytest.mark.parametrize('kind', ['file', 'link', 'dangling', 'folder'])
def test_leftovers_of_any_kind_are_no_obstacle(tmp_path, name, kind):
  stage, other = tmp_path / 'stage', tmp_path / 'other'
  other.mkdir()
  (other / 'mine').write_text('kept')
  with CheckpointStore(stage, keep=1) as store:
    save(store, 1)
    path = stage / name
    match kind:
      case 'file':
        path.write_text('')
      case 'link':
        path.symlink_to(other)
      case 'dangling':
        path.symlink_to(tmp_path / 'gone')
      case 'folder':
        shutil.copytree(other, path)
    save(store, 5, 6)
    assert names(stage) == ['00000006'] and (other / 'mine').read_text() == 'kept'


@pytest.mark.parametrize('name', ['notes.saving', 'notes.deleting', 'best', '1.saving'])
def test_names_that_are_not_ours_are_left_alone(tmp_path, name):
  with CheckpointStore(tmp_path, keep=1) as store:
    (tmp_path / name).write_text('kept')
    save(store, 1, 2)
  assert (tmp_path / name).read_text() == 'kept' and '00000002' in names(tmp_path)


def test_one_that_cannot_be_deleted_is_named_and_the_save_stands(tmp_path, monkeypatch):
  warnings = []
  with CheckpointStore(tmp_path, keep=1, warn=warnings.append) as store:
    save(store, 1)

    def refuse(path, saving):
      raise PermissionError(1, 'Operation not permitted', str(path))

    monkeypatch.setattr(store_module, 'delete', refuse)
    save(store, 2)
    assert store.latest_valid().step == 2 and '00000001 is no longer needed' in warnings[0]


def test_the_first_of_each_interval_counts_where_one_was_late():
  committed = [CommittedFolder(step, path=None) for step in (22, 17, 12, 11, 5)]
  kept = Retention(keep=9, every=5, pinned=frozenset()).regular(committed)
  assert [each.step for each in kept] == [22, 17, 11, 5]


def test_a_save_of_perhaps_bad_parameters_pushes_none_out(tmp_path):
  with CheckpointStore(tmp_path, keep=1) as store:
    save(store, 1)
    save(store, 2, keep_all=True)
    assert store.steps() == [2, 1]
    save(store, 3)
    assert store.steps() == [3]


# ---------------------------------------------------------------------------------------------- foreign ones
def refuse_all(checkpoint):
  raise CheckpointError(f'{checkpoint.path}: is of another run')


def test_a_foreign_checkpoint_is_named_and_the_one_before_it_is_taken(tmp_path):
  warnings = []

  def check(checkpoint):
    if checkpoint.step == 2:
      refuse_all(checkpoint)

  with CheckpointStore(tmp_path, keep=3, warn=warnings.append, check=check) as store:
    save(store, 1, 2)
    assert store.latest_valid().step == 1 and '00000002: is of another run' in warnings[0]
    with pytest.raises(CheckpointError, match='another run'):
      store.at(2)
    with pytest.raises(CheckpointError, match='another run'):
      store.newest(2)
  with pytest.raises(CheckpointError, match='none of its 2 checkpoints is valid'):
    CheckpointStore(tmp_path, warn=warnings.append, check=refuse_all).latest_valid()
  assert CheckpointStore(tmp_path).latest_valid().step == 2  # the mutation


WRONG = {
  'config': [], 'stage': 3, 'final': 'no', 'tokenizer': 1, 'lineage': 'x', 'data': {'samples': 'many'},
  'eval_data': [1], 'start_metrics': 'x', 'leaves': {'step': ['x', 'int32']}, 'step': None,
}


@pytest.mark.parametrize('field', WRONG)
@pytest.mark.parametrize('how', ['gone', 'wrong'])
def test_a_manifest_with_a_right_checksum_and_wrong_content_is_one_line(tmp_path, field, how):
  with CheckpointStore(tmp_path, keep=2, warn=lambda text: None) as store:
    save(store, 1, 2)
    metadata = dict(read_manifest(tmp_path / '00000002').metadata)
    metadata[field] = WRONG[field]
    if how == 'gone':
      del metadata[field]
    write_manifest(tmp_path / '00000002', metadata)
    assert store.latest_valid().step == 1
    with pytest.raises(CheckpointError, match='00000002: its metadata are'):
      store.at(2)


def test_arrays_that_the_manifest_does_not_list_rightly_are_one_line(tmp_path):
  with CheckpointStore(tmp_path) as store:
    save(store, 1)
    metadata = dict(read_manifest(tmp_path / '00000001').metadata)
    leaves = dict(metadata['leaves'])
    leaves['params/head/w'] = leaves['params/embedding/w']
    write_manifest(tmp_path / '00000001', {**metadata, 'leaves': leaves})
    with pytest.raises(CheckpointError, match='00000001: its arrays are not those that its manifest lists'):
      store.latest_valid().read()


# ---------------------------------------------------------------------------------------------- readers
def test_what_is_being_read_is_not_deleted(tmp_path):
  with CheckpointStore(tmp_path, keep=1) as store:
    save(store, 1)
    with hold(tmp_path / '00000001'):
      save(store, 2)
      assert store.steps() == [2, 1]
    save(store, 3)
    assert store.steps() == [3]


def test_the_mutation_of_a_hold(tmp_path, monkeypatch):
  monkeypatch.setattr(store_module, 'claim', lambda path: contextlib.nullcontext(True))
  with CheckpointStore(tmp_path, keep=1) as store:
    save(store, 1)
    with hold(tmp_path / '00000001'):
      save(store, 2)
      assert store.steps() == [2]


def test_one_that_went_while_it_was_read_is_named(tmp_path):
  with CheckpointStore(tmp_path, keep=2) as store:
    save(store, 1)
    found = store.latest_valid()
    shutil.rmtree(tmp_path / '00000001')
    with pytest.raises(CheckpointError, match='00000001'):
      found.restore(abstract(make_state(0)))
    with pytest.raises(CheckpointError, match='00000001'):
      found.read()


def test_a_reader_beside_a_run_that_saves_finds_a_whole_one(tmp_path):
  """Every save replaces the checkpoint before it, while another store looks for the newest again and again."""
  warnings, ended = [], threading.Event()
  with CheckpointStore(tmp_path, keep=1) as store:
    save(store, 1)

    def keep_saving():
      for step in range(2, 22):
        save(store, step)
      ended.set()

    saving = threading.Thread(target=keep_saving)
    saving.start()
    reader = CheckpointStore(tmp_path, warn=warnings.append)
    seen = []
    while not ended.is_set():
      with reader.hold_newest() as found:
        assert_same(found.restore(abstract(make_state(0))), make_state(found.step))
        seen.append(found.step)
    saving.join()
  assert seen == sorted(seen) and len(set(seen)) > 1 and not warnings
  assert '00000021' in os.listdir(tmp_path)
  assert_same(reader.latest_valid().restore(abstract(make_state(0))), make_state(21))


def test_a_reader_that_takes_longer_than_a_save_is_not_overtaken_for_ever(tmp_path, monkeypatch):
  tries, has_found = [], threading.Event()

  def open_slowly(path, read):
    tries.append(path.name)
    assert len(tries) < 5, 'every one of them went while it was verified'
    time.sleep(0.5)
    return open_checkpoint(path, read)

  with CheckpointStore(tmp_path, keep=1) as store:
    save(store, 1)

    def keep_saving():
      for step in itertools.count(2):
        save(store, step)
        if has_found.is_set():
          return

    saving = threading.Thread(target=keep_saving)
    saving.start()
    monkeypatch.setattr(store_module, 'open_checkpoint', open_slowly)
    try:
      with CheckpointStore(tmp_path).hold_newest() as found:
        assert_same(found.restore(abstract(make_state(0))), make_state(found.step))
    finally:
      has_found.set()
      saving.join()
  assert max(CheckpointStore(tmp_path).steps()) > found.step + 1
