"""A manifest notices every way in which a folder can differ from what was written. No jax is needed for it."""
import hashlib
import json
import random

import pytest

from llm_jax.checkpoints.manifest import NAME, FileEntry, _encode, read_manifest, verify, write_manifest
from llm_jax.runtime.errors import CheckpointError

METADATA = {'step': 3, 'rate': 1e-05, 'name': 'é', 'nested': {'list': [1, None, True]}}


@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'inner').mkdir()
  (tmp_path / 'a').write_bytes(b'alpha')
  (tmp_path / 'inner' / 'b').write_bytes(bytes(range(256)) * 8)
  (tmp_path / 'inner' / 'empty').write_bytes(b'')
  write_manifest(tmp_path, METADATA)
  return tmp_path


def test_metadata_and_hashes(folder):
  manifest = verify(folder)
  assert manifest.metadata == METADATA == read_manifest(folder).metadata
  assert set(manifest.files) == {'a', 'inner/b', 'inner/empty'}
  assert manifest.files['a'] == FileEntry(5, hashlib.sha256(b'alpha').hexdigest())


@pytest.mark.parametrize('change, message', [
    (lambda f: (f / 'inner' / 'b').unlink(), 'inner/b: missing'),
    (lambda f: (f / 'inner' / 'empty').unlink(), 'inner/empty: missing'),
    (lambda f: (f / 'a').write_bytes(b''), 'a: has 0 bytes'),
    (lambda f: (f / 'a').write_bytes(b'alph'), 'a: has 4 bytes'),
    (lambda f: (f / 'a').write_bytes(b'alphb'), 'a: changed'),
    (lambda f: (f / 'inner' / 'new').write_bytes(b''), 'inner/new: not listed'),
    (lambda f: (f / 'inner' / NAME).write_bytes(b''), f'inner/{NAME}: not listed'),
    (lambda f: (f / NAME).unlink(), f'{NAME}: cannot be read'),
    (lambda f: (f / NAME).write_bytes(b''), f'{NAME}: damaged'),
    (lambda f: (f / NAME).write_bytes(b'[' * 100_000), f'{NAME}: damaged'),
    (lambda f: (f / NAME).write_bytes(b'[]'), f'{NAME}: damaged'),
    (lambda f: (f / NAME).write_bytes(b'\xff'), f'{NAME}: damaged'),
])
def test_each_change_names_its_file(folder, change, message):
  change(folder)
  with pytest.raises(CheckpointError, match=f'{folder}/{message}'):
    verify(folder)


def test_every_bit_of_the_manifest_counts(folder):
  """Also those that leave the JSON's meaning alone: 1e-05 and 1E-05, white space."""
  path = folder / NAME
  content = path.read_bytes()
  for bit in random.Random(0).sample(range(8 * len(content)), 500):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)
    with pytest.raises(CheckpointError, match=NAME):
      read_manifest(folder)
  for changed in (content.replace(b'1e-05', b'1E-05'), content + b'\n', content.replace(b'\n', b'')):
    path.write_bytes(changed)
    with pytest.raises(CheckpointError, match=NAME):
      read_manifest(folder)


def test_a_rewritten_manifest_without_the_right_checksum(folder):
  body = json.loads((folder / NAME).read_text())
  body['metadata']['step'] = 4
  (folder / NAME).write_text(json.dumps(body, sort_keys=True, indent=1))
  with pytest.raises(CheckpointError, match='checksum'):
    verify(folder)


def test_a_manifest_of_version_0_1_is_refused_in_one_line(tmp_path):
  (tmp_path / NAME).write_bytes(_encode({'facts': METADATA, 'files': {}}))
  with pytest.raises(CheckpointError) as caught:
    verify(tmp_path)
  assert str(caught.value) == (f'{tmp_path / NAME}: written by llm_jax 0.1: read it with that version, or train in '
                               'another workdir')


def test_a_dangling_link_is_not_overlooked(folder):
  (folder / 'link').symlink_to(folder / 'nowhere')
  with pytest.raises(CheckpointError, match='link: not listed'):
    verify(folder)
