"""Folders from strangers: refused with one clear line, nothing executed, nothing read or written outside of them."""
import json
import os
import random
import struct

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from llm_jax import hf
from llm_jax.config.errors import ConfigError
from llm_jax.hf.tensor_file import TensorFiles, read_header
from llm_jax.runtime.errors import FileError
from tests.hf import hf_models


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('good')
  hf_models.make(hf_models.CASES['llama gqa']).save_pretrained(folder)
  return folder


@pytest.fixture
def copy(folder, tmp_path):
  """A folder of its own, to be spoilt."""
  target = tmp_path / 'folder'
  target.mkdir()
  for name in ('config.json', 'model.safetensors'):
    (target / name).write_bytes((folder / name).read_bytes())
  return target


def write_index(folder, weight_map):
  (folder / 'model.safetensors.index.json').write_text(json.dumps(dict(weight_map=weight_map)))


def test_ten_thousand_fuzzed_headers():
  """What we accept the library accepts too, and sees as we do; everything else is a ConfigError."""
  tensors = {'a': np.arange(6, dtype=np.float32).reshape(2, 3), 'b.weight': np.ones(4, np.float16),
             'c': np.zeros((1, 0), np.int8), 'd': np.full((2, 2), 7, np.uint8)}
  good = safetensors.numpy.save(tensors, {'format': 'pt'})
  size = struct.unpack('<Q', good[:8])[0]
  pieces = [b'"', b'{', b'}', b'[', b']', b',', b':', b'0', b'-1', b'1e9', b'99999999999999999999', b'null', b'true',
            b'NaN', b'"F32"', b'"BF16"', b'"Q8"', b'"a":', b'"../../x"', b'\xff', b'\x00', b'[' * 4_000, b'24',
            b'"shape"']
  rng, accepted, refused = random.Random(0), 0, 0
  for trial in range(10_000):
    data = bytearray(good)
    for _ in range(rng.randint(1, 3)):
      place = rng.randrange(min(8 + size, len(data)))
      match rng.randrange(6):
        case 0:
          data[place] = rng.randrange(256)
        case 1:
          piece = rng.choice(pieces)
          data[place:place + len(piece)] = piece
        case 2:
          piece = rng.choice(pieces)
          data[place:place] = piece
          data[:8] = struct.pack('<Q', struct.unpack('<Q', data[:8])[0] + len(piece) & (1 << 64) - 1)
        case 3:
          data[:8] = struct.pack('<Q', rng.choice((0, 1, size - 1, size + 1, len(good), 1 << 40, (1 << 64) - 1)))
        case 4:
          del data[rng.randrange(len(data)):]
          data += bytes(max(0, 8 - len(data)))
        case 5:  # a digit, where most of the damage is
          digits = [i for i in range(8, min(8 + size, len(data))) if chr(data[i]).isdigit()]
          if digits:
            data[rng.choice(digits)] = ord(rng.choice('0123456789'))
    try:
      slots = read_header(bytes(data), len(data), 'file')
    except ConfigError as error:
      assert str(error).startswith('file = ') and '\n' not in str(error)[:200]
      refused += 1
      continue
    accepted += 1
    theirs = dict(safetensors.deserialize(bytes(data)))
    assert theirs.keys() == slots.keys()
    for name, slot in slots.items():
      assert tuple(theirs[name]['shape']) == slot.shape
      assert bytes(theirs[name]['data']) == bytes(data[slot.start:slot.end]), trial
  assert accepted > 100 and refused > 5_000


@pytest.mark.parametrize('header, why', (
  ({'a': dict(dtype='F32', shape=[2], data_offsets=[0, 8]), 'b': dict(dtype='F32', shape=[1], data_offsets=[4, 8])},
   'overlaps'),
  ({'a': dict(dtype='F32', shape=[1], data_offsets=[0, 4]), 'b': dict(dtype='F32', shape=[0], data_offsets=[8, 8])},
   'hole'),
  ({'a': dict(dtype='F32', shape=[1], data_offsets=[0, 4])}, 'need'),
  ({'a': dict(dtype='F32', shape=[4], data_offsets=[0, 16])}, 'need'),
  ({'a': dict(dtype='F32', shape=[3], data_offsets=[0, 8])}, 'do not fit'),
  ({'a': dict(dtype='F32', shape=[-2], data_offsets=[0, 8])}, 'shape'),
  ({'a': dict(dtype='F32', shape=[True, 2], data_offsets=[0, 8])}, 'shape'),
  ({'a': dict(dtype='F32', shape=[2], data_offsets=[8, 0])}, 'range'),
  ({'a': dict(dtype='F33', shape=[2], data_offsets=[0, 8])}, 'dtype'),
  ({'a': dict(dtype=['F32'], shape=[2], data_offsets=[0, 8])}, 'dtype'),
  ({'a': dict(dtype='F32', shape=[2], data_offsets=[0, 8], code='x')}, 'must have'),
  ({'a': dict(dtype='F32', shape=[2], data_offsets=[0, 8]), '__metadata__': {'x': 1}}, 'texts'),
  ([], 'not a JSON object'),
))
def test_headers_that_lie(header, why, copy):
  text = json.dumps(header).encode()
  (copy / 'model.safetensors').write_bytes(struct.pack('<Q', len(text)) + text + bytes(8))
  with pytest.raises(ConfigError, match=rf'model\.safetensors.*not a readable safetensors file: .*{why}'):
    hf.load_pretrained(copy)


def test_a_tensor_named_twice_in_one_header(copy):
  entry = b'"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'
  text = b'{' + entry + b',' + entry + b'}'
  (copy / 'model.safetensors').write_bytes(struct.pack('<Q', len(text)) + text + bytes(4))
  with pytest.raises(ConfigError, match="its header is not JSON \\('a' is there twice\\)"):
    hf.load_pretrained(copy)


def test_a_tensor_in_two_files(copy):
  (copy / 'again.safetensors').write_bytes((copy / 'model.safetensors').read_bytes())
  write_index(copy, {'a': 'model.safetensors', 'b': 'again.safetensors'})
  with pytest.raises(ConfigError, match='in another file too'):
    hf.load_pretrained(copy)


def test_two_models_in_one_folder(copy):
  hf_models.make(hf_models.CASES['llama gqa'], seed=1).save_pretrained(copy, max_shard_size=20_000)
  with pytest.raises(ConfigError, match='remove the one that is out of date'):
    hf.load_pretrained(copy)


@pytest.mark.parametrize('index, match', (
  ('{', 'not a readable JSON'), ('[' * 100_000, 'not a readable JSON'), ('[]', 'JSON object'), ('{}', 'weight_map'),
  (json.dumps(dict(weight_map={})), 'weight_map'),
  *((json.dumps(dict(weight_map=dict(a=name))), 'same folder') for name in (
    '../model.safetensors', '/etc/model.safetensors', 'model.bin', 'x/../model.safetensors', '..\\model.safetensors',
    'a\0.safetensors', '', '.', 7, None)),
  (json.dumps(dict(weight_map=dict(a='absent.safetensors'))), 'missing'),
))
def test_bad_index(index, match, copy):
  (copy / 'model.safetensors.index.json').write_text(index)
  with pytest.raises(ConfigError, match=match):
    hf.load_pretrained(copy)


@pytest.mark.parametrize('name', ('model.safetensors', 'config.json', 'shard.safetensors'))
def test_links_that_lead_out(name, copy, folder):
  (copy / name).unlink(missing_ok=True)
  (copy / name).symlink_to(folder / ('config.json' if name == 'config.json' else 'model.safetensors'))
  if name.startswith('shard'):
    write_index(copy, {'a': name})
  with pytest.raises(ConfigError, match=f'{name}.*leads out of the folder'):
    hf.load_pretrained(copy)


def test_a_folder_below_the_root_is_like_any_other():
  """Such as /model in a container."""
  with pytest.raises(ConfigError, match=r'config\.json = None: there is no such file'):
    hf.load_pretrained('/nowhere')


def test_links_of_the_hub_cache(folder, tmp_path):
  """snapshots/REVISION/FILE -> ../../blobs/HASH, as `huggingface_hub` keeps its downloads."""
  snapshot = tmp_path / 'snapshots' / 'f00d'
  snapshot.mkdir(parents=True)
  (tmp_path / 'blobs').mkdir()
  for name in ('config.json', 'model.safetensors'):
    (tmp_path / 'blobs' / name[::-1]).write_bytes((folder / name).read_bytes())
    (snapshot / name).symlink_to(f'../../blobs/{name[::-1]}')
  assert hf.load_pretrained(snapshot)[0] == hf.load_pretrained(folder)[0]


@pytest.mark.parametrize('name', ('pytorch_model.bin', 'model.pt', 'consolidated.00.pth', 'model.ckpt'))
def test_pickles_are_refused(name, copy, tmp_path):
  (copy / 'model.safetensors').unlink()
  with pytest.raises(ConfigError, match='neither'):
    hf.load_pretrained(copy)
  (copy / name).write_bytes(f'cos\nsystem\n(S"touch {tmp_path}/executed"\ntR.'.encode())
  with pytest.raises(ConfigError, match=f'{name}.*safetensors'):
    hf.load_pretrained(copy)
  (copy / 'model.safetensors').write_bytes((copy / name).read_bytes())  # the same under another name
  with pytest.raises(ConfigError, match='not a readable safetensors'):
    hf.load_pretrained(copy)
  assert not (tmp_path / 'executed').exists()


def test_code_of_the_folder_is_not_run(copy, tmp_path):
  values = json.loads((copy / 'config.json').read_text())
  (copy / 'evil.py').write_text(f'open({str(tmp_path / "executed")!r}, "w")')
  (copy / 'config.json').write_text(json.dumps(values | {'auto_map': {'AutoModelForCausalLM': 'evil.Model'}}))
  with pytest.raises(ConfigError, match='^auto_map = .*never run'):
    hf.load_pretrained(copy)
  assert not (tmp_path / 'executed').exists()


def test_truncated_files_and_absent_ones(copy):
  file = copy / 'model.safetensors'
  whole = file.read_bytes()
  for size in (0, 7, 8, 100, len(whole) - 1):
    file.write_bytes(whole[:size])
    with pytest.raises(ConfigError, match=r'model\.safetensors.*not a readable safetensors'):
      hf.load_pretrained(copy)
  (copy / 'config.json').unlink()
  with pytest.raises(ConfigError, match=r'config\.json'):
    hf.load_pretrained(copy)


def test_a_file_that_is_cut_short_while_it_is_read_is_named(copy):
  """It was whole when it was opened. Where files are mapped, this ends the program with SIGBUS."""
  file = copy / 'model.safetensors'
  size = file.stat().st_size
  cut = lambda *_: os.truncate(file, size // 2)
  with pytest.raises(FileError, match=rf'model\.safetensors: ends at byte {size // 2} of {size}: it was cut short'):
    hf.load_pretrained(copy, progress=cut)


def test_a_tensor_is_kept_until_it_is_forgotten(copy, folder):
  """One that several devices read is read from the disk once."""
  tensors = TensorFiles([copy / 'model.safetensors'])
  want = hf_models.tensors(folder)['model.norm.weight']
  before = np.asarray(tensors['model.norm.weight'])
  np.testing.assert_array_equal(before, want)
  os.truncate(copy / 'model.safetensors', 0)
  assert np.asarray(tensors['model.norm.weight']) is before
  with pytest.raises(ValueError, match='read-only'):
    before[0] = 1
  tensors.forget('model.norm.weight')
  with pytest.raises(FileError, match='cut short'):
    np.asarray(tensors['model.norm.weight'])
