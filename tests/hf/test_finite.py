"""Numbers that are none, or that a dtype does not hold: refused by the tensor's name where a model goes in or out."""
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from launch import convert, sample
from llm_jax import hf, paths
from llm_jax.config.errors import ConfigError
from llm_jax.config.run import Mesh
from llm_jax.data.tokenizers.byte_level import ByteTokenizer
from llm_jax.hf.finite import count_not_finite
from llm_jax.sharding.mesh import make_mesh
from tests.hf import hf_models

NAME = 'model.layers.1.mlp.down_proj.weight'


def spoil(folder, numbers, name=NAME, dtype=np.float32):
  path = folder / 'model.safetensors'
  tensors = {key: tensor.astype(dtype) for key, tensor in safetensors.numpy.load_file(path).items()}
  tensors[name].reshape(-1)[3:3 + len(numbers)] = numbers
  safetensors.numpy.save_file(tensors, path, {'format': 'pt'})


@pytest.fixture
def folder(tmp_path):
  hf_models.make(hf_models.CASES['llama gqa']).save_pretrained(tmp_path / 'hub')
  return tmp_path / 'hub'


def test_counts():
  for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
    array = np.zeros((3, 5), dtype)
    array[1, 2:] = np.nan, np.inf, -np.inf
    assert count_not_finite(array) == 3 and count_not_finite(array[:, :2]) == 0 and count_not_finite(array[:0]) == 0
  assert count_not_finite(np.full((5, 1 << 19), np.nan, np.float16)) == 5 << 19


@pytest.mark.parametrize('on_mesh', [False, True])
@pytest.mark.parametrize('dtype', [np.float32, np.float16, ml_dtypes.bfloat16])
def test_an_import_names_the_tensor_and_counts(dtype, on_mesh, folder):
  spoil(folder, [np.nan, np.inf, -np.inf], dtype=dtype)
  mesh = make_mesh(Mesh()) if on_mesh else None
  with pytest.raises(ConfigError, match=rf"{folder} = '{NAME}: 3 of 2304 numbers are NaN or infinite': .*diverged"):
    hf.load_pretrained(folder, mesh)


def test_an_import_beyond_its_dtype(folder):
  spoil(folder, [1e5, -7e4])
  assert hf.load_pretrained(folder, dtype='bfloat16')
  with pytest.raises(ConfigError, match=f'{NAME}: 2 of 2304 numbers are beyond float16, the largest is 100000'):
    hf.load_pretrained(folder, dtype='float16')


@pytest.mark.parametrize('value, dtype, message', [
  (1e5, 'float16', '1 of 32 numbers are beyond float16, the largest is 100000.*ends at 65504: use bfloat16 or float32'),
  (3.4e38, 'bfloat16', '1 of 32 numbers are beyond bfloat16.*use float32'),
  (np.nan, 'float16', '1 of 32 numbers are NaN or infinite'),
  (np.inf, 'float32', '1 of 32 numbers are NaN or infinite'),
])
def test_an_export_is_refused_and_leaves_nothing(value, dtype, message, folder, tmp_path):
  config, params = hf.load_pretrained(folder)
  params['final_norm']['scale'][0] = value
  with pytest.raises(ConfigError, match=f'model.norm.weight: {message}'):
    hf.save_pretrained(tmp_path / 'out', config, params, dtype=dtype)
  assert [path.name for path in tmp_path.iterdir()] == ['hub']


def test_a_checkpoint_with_nan_is_not_sampled(tmp_path, capsys, monkeypatch):
  tokenizer = ByteTokenizer()
  model = hf_models.make(hf_models.llama(vocab_size=257, bos_token_id=256, eos_token_id=256))
  model.save_pretrained(tmp_path / 'hub')
  for name, content in hf.tokenizer_files(tokenizer).items():
    (tmp_path / 'hub' / name).write_bytes(content)
  with monkeypatch.context() as patched:  # as a run that diverged leaves it
    patched.setattr('llm_jax.hf.weights.check_cast', lambda *_: None)
    spoil(tmp_path / 'hub', [np.nan, np.nan])
    assert convert.main([f'--from_hf={tmp_path / "hub"}', f'--to={tmp_path / "run"}']) == 0
  flags = [f'--checkpoint={tmp_path / "run"}', '--prompt=a', '--max_new_tokens=1']
  assert sample.main(flags) != 0
  said = capsys.readouterr().err.strip().splitlines()[-1]
  assert 'blocks/block_0/feed_forward/down/w has 2 of 4608 numbers that are NaN or infinite' in said


# ---------------------------------------------------------------------------------------------- kept in float32
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('case', ['deepseek', 'mixtral', 'llama gqa', 'gemma2', 'gpt2'])
def test_what_transformers_keeps_in_float32_stays_so(case, dtype, tmp_path):
  """Tensor by tensor: the dtype that their model has for it under the same `dtype`."""
  hf_models.make(hf_models.CASES[case]).save_pretrained(tmp_path / 'hub')
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'hub', dtype=getattr(torch, dtype))
  theirs.save_pretrained(tmp_path / 'theirs')
  want = {name: tensor.dtype for name, tensor in hf_models.tensors(tmp_path / 'theirs').items()}
  config, params = hf.load_pretrained(tmp_path / 'hub', dtype=dtype)
  got = {name: tensor.dtype for name, tensor in hf.state_dict_from_params(config, params).items()}
  assert got == want and len(set(got.values())) == 1 + (case == 'deepseek')
  hf.save_pretrained(tmp_path / 'ours', config, params, dtype=dtype)
  assert {name: tensor.dtype for name, tensor in hf_models.tensors(tmp_path / 'ours').items()} == want


def test_the_bias_of_the_experts_is_not_rounded_on_a_mesh(tmp_path):
  hf_models.make(hf_models.CASES['deepseek']).save_pretrained(tmp_path)
  mesh = make_mesh(Mesh())
  exact = dict(paths.leaves(hf.load_pretrained(tmp_path)[1]))
  found = dict(paths.leaves(hf.load_pretrained(tmp_path, mesh, 'bfloat16')[1]))
  for path, leaf in found.items():
    if path.endswith('balance/bias'):
      np.testing.assert_array_equal(leaf, exact[path])
    else:
      assert leaf.dtype == ml_dtypes.bfloat16
