"""Experts in MXFP4: the numbers are those of transformers, folders are read as it reads them, and faults are named."""
import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from transformers.integrations import mxfp4 as theirs

import llm_jax
from llm_jax import hf
from llm_jax.config.errors import ConfigError
from llm_jax.config.run import Mesh
from llm_jax.hf import mxfp4
from llm_jax.sharding.mesh import make_mesh
from tests.hf import hf_models

EXPERTS = 'model.layers.{}.mlp.experts.{}'
QUANTISED = {'quantization_config': {'quant_method': 'mxfp4', 'modules_to_not_convert': ['lm_head']}}


def random_packed(experts, rows, blocks, seed=0, scales=(110, 130)):
  random = np.random.default_rng(seed)
  return (random.integers(0, 256, (experts, rows, blocks, 16), np.uint8),
          random.integers(*scales, (experts, rows, blocks), np.uint8))


# ---------------------------------------------------------------------------------------------- numbers
@pytest.mark.parametrize('dtype', ('float32', 'bfloat16'))
def test_every_byte_and_scale_is_as_transformers_unpacks_it(dtype):
  """All 256 bytes with scales of 2^-100 to 2^100."""
  blocks = np.tile(np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16), (1, 201, 1, 1))
  scales = np.broadcast_to(np.arange(27, 228, dtype=np.uint8)[None, :, None], (1, 201, 16))
  want = theirs.convert_moe_packed_tensors(
    torch.tensor(blocks), torch.tensor(scales.copy()), dtype=getattr(torch, dtype))
  got = mxfp4.PackedTensor('x', blocks, scales).part(0, 1).astype(dtype)
  np.testing.assert_array_equal(got.astype(np.float32), want.float().numpy())


def test_scales_at_the_ends():
  """2^-127 is a number that float32 still holds, 255 is none."""
  blocks, scales = np.full((1, 1, 3, 16), 0x21, np.uint8), np.array([[[0, 127, 255]]], np.uint8)
  got = mxfp4.unpack(blocks, scales).reshape(3, 16, 2)
  np.testing.assert_array_equal(got[0, 0], np.array([0.5, 1.0]) * 2.0**-127)
  np.testing.assert_array_equal(got[1, 0], [0.5, 1.0])
  assert np.isnan(got[2]).all()


# ---------------------------------------------------------------------------------------------- folders
@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A gpt-oss as it is published: experts packed, everything else in bfloat16, in two files with an index."""
  path = tmp_path_factory.mktemp('packed')
  config = hf_models.gpt_oss(hidden_size=64, intermediate_size=32, num_attention_heads=4, swiglu_limit=1.0)
  model = hf_models.make(config)
  tensors = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in hf_models.in_files(model).items()}
  for layer in range(config.num_hidden_layers):
    for name, (rows, blocks) in {'gate_up_proj': (64, 2), 'down_proj': (64, 1)}.items():
      key = EXPERTS.format(layer, name)
      del tensors[key]
      tensors[key + '_blocks'], tensors[key + '_scales'] = random_packed(5, rows, blocks, layer, (122, 125))
  names = sorted(tensors)
  parts = {'model-00001-of-00002.safetensors': names[::2], 'model-00002-of-00002.safetensors': names[1::2]}
  for file, own in parts.items():
    safetensors.numpy.save_file({name: tensors[name] for name in own}, path / file, {'format': 'pt'})
  index = {'metadata': {}, 'weight_map': {name: file for file, own in parts.items() for name in own}}
  (path / 'model.safetensors.index.json').write_text(json.dumps(index))
  (path / 'config.json').write_text(json.dumps(config.to_dict() | QUANTISED | {'model_type': 'gpt_oss'}))
  return path


def copy(folder, target, change):
  """The folder in one file, with `change` applied to its tensors."""
  tensors = hf_models.tensors(folder)
  change(tensors)
  (target / 'config.json').write_text((folder / 'config.json').read_text())
  safetensors.numpy.save_file(tensors, target / 'model.safetensors', {'format': 'pt'})
  return target


def test_logits_are_those_of_transformers(folder):
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, quantization_config=transformers.Mxfp4Config(dequantize=True), dtype=torch.float32,
    attn_implementation='eager')
  config, params = hf.load_pretrained(folder)
  tokens = np.asarray(hf_models.batch().tokens)
  with torch.no_grad():
    want = model(torch.tensor(tokens).long()).logits.numpy()
  got = jax.jit(llm_jax.Transformer(config).apply)({'params': params}, tokens)
  assert np.abs(want).max() > 0.5
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
  np.testing.assert_array_equal(got.argmax(-1), want.argmax(-1))


def test_every_number_is_in_its_place(folder):
  """In float32 and in bfloat16, which holds them all, and on a mesh that cuts experts, widths and d_model."""
  config, params = hf.load_pretrained(folder)
  packed = hf_models.tensors(folder)
  for layer in range(config.num_layers):
    experts = params['blocks'][f'block_{layer}']['feed_forward']['experts']
    unpacked = {name: theirs.convert_moe_packed_tensors(
      *(torch.tensor(packed[EXPERTS.format(layer, name) + end]) for end in ('_blocks', '_scales')), dtype=torch.float32
    ).numpy() for name in ('gate_up_proj', 'down_proj')}
    np.testing.assert_array_equal(experts['gate']['w'][0], unpacked['gate_up_proj'][..., 0::2])
    np.testing.assert_array_equal(experts['up']['w'][0], unpacked['gate_up_proj'][..., 1::2])
    np.testing.assert_array_equal(experts['down']['w'][0], unpacked['down_proj'])
  half = hf.load_pretrained(folder, dtype='bfloat16')[1]
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float32)), params, half)


def test_a_mesh_gets_its_parts(folder, tmp_path):
  """131 tokens are divided by no mesh: only experts are split over devices here."""
  want = hf.load_pretrained(folder)[1]
  placed = hf.load_pretrained(folder, mesh=make_mesh(Mesh(data=1, fsdp=4, expert=1), jax.devices()[:4]))[1]
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(placed), want)
  of_five = hf.load_pretrained(folder, mesh=make_mesh(Mesh(data=1, expert=5), jax.devices()[:5]))[1]
  down = of_five['blocks']['block_1']['feed_forward']['experts']['down']['w']
  assert {shard.data.shape for shard in down.addressable_shards} == {(1, 1, 32, 64)}
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(of_five), want)


def test_all_bytes_of_the_files_are_counted(folder):
  calls = []
  hf.load_pretrained(folder, progress=lambda done, total: calls.append((done, total)))
  total = sum(tensor.nbytes for tensor in hf_models.tensors(folder).values())
  assert calls[-1] == (total, total) and [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_no_number_is_unpacked_to_check_a_folder(folder, monkeypatch):
  monkeypatch.setattr(mxfp4, 'unpack', lambda *_: pytest.fail('unpacked'))
  hf.check_pretrained(folder, hf.read_config(folder))


def test_it_is_exported_in_plain_numbers(folder, tmp_path):
  config, params = hf.load_pretrained(folder)
  hf.save_pretrained(tmp_path / 'out', config, params, dtype='bfloat16')
  values = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert 'quantization_config' not in values and values['model_type'] == 'gpt_oss'
  assert {str(tensor.dtype) for tensor in hf_models.tensors(tmp_path / 'out').values()} == {'bfloat16'}
  jax.tree.map(np.testing.assert_array_equal, hf.load_pretrained(tmp_path / 'out')[1], params)


# ---------------------------------------------------------------------------------------------- faults
def lose_scales(tensors):
  del tensors[EXPERTS.format(0, 'down_proj_scales')]


def cut_scales(tensors):
  tensors[EXPERTS.format(0, 'down_proj_scales')] = tensors[EXPERTS.format(0, 'down_proj_scales')][:-1]


def widen(tensors):
  key = EXPERTS.format(1, 'gate_up_proj')
  tensors[key + '_blocks'], tensors[key + '_scales'] = random_packed(5, 64, 3)


def break_scale(tensors):
  tensors[EXPERTS.format(1, 'down_proj_scales')][3, 7, 0] = 255


@pytest.mark.parametrize('change, message', [
  (lose_scales, r'missing model\.layers\.0\.mlp\.experts\.down_proj \[5, 32, 64\].*extra \S*down_proj_blocks'),
  (cut_scales, r"down_proj = 'uint8 \[5, 64, 1, 16\], scales uint8 \[4, 64, 1\]': MXFP4 is read as uint8"),
  (widen, r'layers\.1\.mlp\.experts\.gate_up_proj is \[5, 96, 64\], the architecture needs \[5, 64, 64\]'),
  (break_scale, r'layers\.1\.mlp\.experts\.down_proj: 32 of 2048 numbers are NaN or infinite'),
])
def test_faults_are_named(folder, tmp_path, change, message):
  with pytest.raises(ConfigError, match=message):
    hf.load_pretrained(copy(folder, tmp_path, change))
