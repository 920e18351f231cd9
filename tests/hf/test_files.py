"""Folders written by `transformers` and by us, both ways; what is wrong with a folder is said, all of it."""
import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from llm_jax import hf
from llm_jax.config.errors import ConfigError
from llm_jax.config.model import architecture as arch
from llm_jax.modules.transformer import Transformer
from tests.hf import hf_models


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """Every case as `transformers` writes it: those of one layer's size in one file, Llama in several with an index."""
  made = {}
  for case, config in hf_models.CASES.items():
    folder = made[case] = tmp_path_factory.mktemp('theirs')
    hf_models.make(config).save_pretrained(folder, max_shard_size='20KB' if config.model_type == 'llama' else '1GB')
    assert (len(list(folder.glob('*.safetensors'))) > 2) == (config.model_type == 'llama')
  return made


def same(got, want):
  assert got.keys() == want.keys()
  for name in want:
    assert got[name].dtype == want[name].dtype and got[name].shape == want[name].shape, name
    assert got[name].tobytes() == want[name].tobytes(), name


@pytest.mark.parametrize('case', hf_models.CASES)
def test_round_trip_is_byte_identical_and_loads_in_transformers(case, folders, tmp_path):
  config, params = hf.load_pretrained(folders[case])
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
  hf.save_pretrained(tmp_path / 'ours', config, params, max_shard_bytes=30_000 if 'mixtral' in case else 10**9)
  assert (tmp_path / 'ours' / 'model.safetensors.index.json').exists() == ('mixtral' in case)
  same(hf_models.tensors(tmp_path / 'ours'), hf_models.tensors(folders[case]))
  assert [path.name for path in tmp_path.iterdir()] == ['ours']
  again, values = hf.load_pretrained(tmp_path / 'ours')
  assert parts(again) == parts(config)
  jax.tree.map(np.testing.assert_array_equal, values, params)

  tokens = torch.tensor(np.asarray(hf_models.batch().tokens)).long()
  load = transformers.AutoModelForCausalLM.from_pretrained
  theirs, info = load(tmp_path / 'ours', output_loading_info=True, attn_implementation='eager', trust_remote_code=False)
  assert not any(info[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
  with torch.no_grad():
    assert torch.equal(theirs(tokens).logits, load(folders[case], attn_implementation='eager')(tokens).logits)


def test_gemma2_without_windows_runs_in_transformers(tmp_path):
  model = hf_models.make(hf_models.gemma2(layer_types=['full_attention'] * 2, num_hidden_layers=2))
  hf.save_pretrained(tmp_path / 'ours', *hf_models.to_ours(model))
  ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'ours', attn_implementation='eager')
  tokens = torch.tensor(np.asarray(hf_models.batch().tokens)).long()
  with torch.no_grad():
    assert torch.equal(ours(tokens).logits, model(tokens).logits)


def parts(config):
  """The configuration without the context, which an export states where the import had none."""
  if not isinstance(config.positions, arch.RoPE):
    return config
  return dataclasses.replace(config, positions=dataclasses.replace(config.positions, max_length=None))


def test_the_end_of_text_is_exported(folders, tmp_path):
  config, params = hf.load_pretrained(folders['gpt2'])
  hf.save_pretrained(tmp_path / 'new', config, params, bos=3, eos=(5, 7))
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'new')
  assert model.generation_config.bos_token_id == 3 and list(model.generation_config.eos_token_id) == [5, 7]


def test_bfloat16_files(folders, tmp_path):
  """The bias that balances experts is never rounded."""
  for case in ('llama gqa', 'deepseek'):
    config, params = hf.load_pretrained(folders[case])
    half = jax.tree_util.tree_map_with_path(lambda path, leaf: leaf if 'balance' in str(path) else leaf.astype(
      ml_dtypes.bfloat16).astype(np.float32), params)
    hf.save_pretrained(tmp_path / case, config, params, dtype='bfloat16')
    dtypes = {name: str(t.dtype) for name, t in hf_models.tensors(tmp_path / case).items()}
    assert {name for name, dtype in dtypes.items() if dtype != 'bfloat16'} == {
      name for name in dtypes if name.endswith('e_score_correction_bias')}
    jax.tree.map(np.testing.assert_array_equal, hf.load_pretrained(tmp_path / case)[1], half)


def test_parameters_in_bfloat16(folders):
  wide, half = (hf.load_pretrained(folders['llama gqa'], dtype=dtype)[1] for dtype in ('float32', 'bfloat16'))
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype(ml_dtypes.bfloat16), b), wide, half)


def test_an_export_is_whole_or_absent(folders, tmp_path, monkeypatch):
  config, params = hf.load_pretrained(folders['gpt2'])
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'mine').write_text('kept')
  with pytest.raises(ConfigError, match='something already'):
    hf.save_pretrained(tmp_path / 'full', config, params)
  monkeypatch.setattr('llm_jax.hf.files.write_file', lambda *_: (_ for _ in ()).throw(OSError(28, 'No space')))
  with pytest.raises(OSError, match='No space'):
    hf.save_pretrained(tmp_path / 'new', config, params)
  assert [path.name for path in tmp_path.rglob('*')] == ['full', 'mine']


def test_blocks_of_the_pattern_and_the_prefix_are_numbered_as_they_run(folders):
  """The same decoder of two layers stated three ways: repeated, side by side, and one of them apart."""
  config, params = hf.load_pretrained(folders['gpt2'])
  (block,) = config.pattern
  state = hf.state_dict_from_params(config, params)
  for other in (dataclasses.replace(config, pattern=(block, block)), dataclasses.replace(config, prefix=(block,)),
                dataclasses.replace(config, prefix=(block, block))):
    moved = hf.params_from_state_dict(other, state)
    same(hf.state_dict_from_params(other, moved), state)
    assert hf.config_to_hf(other) == hf.config_to_hf(config)
    jax.tree.map(np.testing.assert_array_equal, hf.load_pretrained(folders['gpt2'], config=other)[1], moved)
  np.testing.assert_array_equal(moved['prefix_1']['feed_forward']['up']['w'],
                                params['blocks']['block_0']['feed_forward']['up']['w'][1])


def test_reading_as_a_given_architecture(folders):
  """Dropout and the scaling of rotary positions may be others, and nothing else."""
  config, params = hf.load_pretrained(folders['llama gqa'])
  longer = dataclasses.replace(config, dropout=0.1, positions=arch.RoPE(1e4, arch.LinearScaling(2.0)))
  got, again = hf.load_pretrained(folders['llama gqa'], config=longer)
  assert got == longer
  jax.tree.map(np.testing.assert_array_equal, again, params)
  for wrong, field in ((dataclasses.replace(config, positions=arch.RoPE(5e5)), 'positions.theta'),
                       (dataclasses.replace(config, norm=arch.RMSNorm(1e-2)), 'norm.eps')):
    with pytest.raises(ConfigError, match=rf'^model\.{field} = '):
      hf.load_pretrained(folders['llama gqa'], config=wrong)


def test_names_of_the_bare_decoder_buffers_and_a_repeated_head(folders):
  """As the GPT-2 files on the Hub: no `transformer.`, and the causal mask beside the weights."""
  config, params = hf.load_pretrained(folders['gpt2'])
  state = {name.removeprefix('transformer.'): t for name, t in hf.state_dict_from_params(config, params).items()}
  state |= {'h.0.attn.bias': np.ones((1, 1, 8, 8), np.uint8), 'lm_head.weight': state['wte.weight'].copy()}
  jax.tree.map(np.testing.assert_array_equal, hf.params_from_state_dict(config, state), params)
  with pytest.raises(ConfigError, match='twice'):
    hf.params_from_state_dict(config, state | {'transformer.wte.weight': state['wte.weight']})
  state['lm_head.weight'][0, 0] += 1
  with pytest.raises(ConfigError, match=r'lm_head\.weight differs from wte\.weight'):
    hf.params_from_state_dict(config, state)


def test_buffers_of_the_first_pythias_are_passed_over(folders):
  """The causal mask, the score of what it hides, and the frequencies stand beside the weights, in float16."""
  config, params = hf.load_pretrained(folders['gpt_neox'])
  state = {name: tensor.astype(np.float16) for name, tensor in hf.state_dict_from_params(config, params).items()}
  rounded = hf.params_from_state_dict(config, state)
  for layer in range(config.num_layers):
    place = f'gpt_neox.layers.{layer}.attention.'
    state |= {f'{place}bias': np.ones((1, 1, 8, 8), bool), f'{place}masked_bias': np.float16(-np.inf).reshape(()),
              f'{place}rotary_emb.inv_freq': np.ones(1, np.float16)}
  jax.tree.map(np.testing.assert_array_equal, hf.params_from_state_dict(config, state), rounded)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), rounded, params)


def test_parameters_work_as_they_come(folders):
  """As an argument and as constants of a jitted function."""
  config, params = hf.load_pretrained(folders['gpt2'])
  model, tokens = Transformer(config), hf_models.batch().tokens
  want = jax.jit(model.apply)({'params': params}, tokens)
  got = jax.jit(lambda tokens: model.apply({'params': params}, tokens))(tokens)
  np.testing.assert_allclose(got, want, atol=1e-6)


# ------------------------------------------------------------------------------------------------ wrong tensors
def broken(folder, target, change):
  """A copy of `folder` in one file, with `change` applied to its tensors."""
  target.mkdir(exist_ok=True)
  state = hf_models.tensors(folder)
  change(state)
  (target / 'config.json').write_text((folder / 'config.json').read_text())
  safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in state.items()}, target / 'model.safetensors')
  return target


def test_every_wrong_tensor_is_listed(folders, tmp_path):
  def change(state):
    del state['model.norm.weight']
    state['model.layers.2.mlp.up_proj.weight'] = np.zeros((72, 32), np.float32)
    state['model.layers.0.self_attn.q_proj.weight'] = state['model.layers.0.self_attn.q_proj.weight'].T
    state['lm_head.weight'] = state['lm_head.weight'][:-1]
    state['model.layers.1.input_layernorm.weight'] = np.zeros(32, np.int8)

  with pytest.raises(ConfigError) as error:
    hf.load_pretrained(broken(folders['llama mqa, large head, theta 500000'], tmp_path, change))
  message = str(error.value)
  assert str(tmp_path) in message and '5 do not fit' in message and '\n' not in message
  for part in ('missing model.norm.weight [32]', 'extra model.layers.2.mlp.up_proj.weight [72, 32]',
               'model.layers.0.self_attn.q_proj.weight is [32, 96], the architecture needs [96, 32]: transposed?',
               f'lm_head.weight is [{hf_models.VOCAB - 1}, 32]', 'model.layers.1.input_layernorm.weight is int8'):
    assert part in message


def test_a_missing_expert_is_listed(folders, tmp_path):
  name = 'model.layers.1.block_sparse_moe.experts.3.w2.weight'
  with pytest.raises(ConfigError, match=f'missing {name}'):
    hf.load_pretrained(broken(folders['mixtral'], tmp_path, lambda state: state.pop(name)))


def test_params_of_another_architecture_are_not_exported(folders, tmp_path):
  config, params = hf.load_pretrained(folders['gpt2'])
  with pytest.raises(ConfigError, match='head/w'):
    hf.save_pretrained(tmp_path / 'new', dataclasses.replace(config, tied_head=False), params)
  assert not list(tmp_path.iterdir())


def test_a_folder_in_pieces_is_read_like_one(folders, tmp_path):
  """The order of an index's files does not matter, and tensors of no file are missing."""
  folder = folders['llama gqa']
  index = json.loads((folder / 'model.safetensors.index.json').read_text())
  for name in ('config.json', *set(index['weight_map'].values())):
    (tmp_path / name).write_bytes((folder / name).read_bytes())
  gone = sorted(set(index['weight_map'].values()))[0]
  kept = {tensor: file for tensor, file in index['weight_map'].items() if file != gone}
  (tmp_path / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': kept}))
  with pytest.raises(ConfigError, match='missing'):
    hf.load_pretrained(tmp_path)


def test_numbers_that_hold_no_parameters_are_refused(folders, tmp_path):
  """int8 would round them all to 0."""
  folder = folders['gpt2']
  config, params = hf.load_pretrained(folder, dtype=ml_dtypes.bfloat16)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {'bfloat16'}
  hf.save_pretrained(tmp_path / 'typed', config, params, dtype=ml_dtypes.bfloat16)
  assert json.loads((tmp_path / 'typed' / 'config.json').read_text())['dtype'] == 'bfloat16'
  for call in (lambda: hf.load_pretrained(folder, dtype='int8'), lambda: hf.load_pretrained(folder, dtype='fp16'),
               lambda: hf.save_pretrained(tmp_path / 'new', config, params, dtype='int8')):
    with pytest.raises(ConfigError, match="dtype = .*: use 'float32', 'bfloat16' or 'float16'"):
      call()
  with pytest.raises(ConfigError, match='mesh = .*: give a mesh'):
    hf.load_pretrained(folder, ml_dtypes.bfloat16)
  with pytest.raises(ConfigError, match="eos = '</s>': give the id of a token"):
    hf.save_pretrained(tmp_path / 'new', config, params, eos='</s>')
  wanted = dataclasses.replace(config, num_layers=config.num_layers + 1)
  with pytest.raises(ConfigError, match='model.num_layers = 3: .* has 2: set it to that'):
    hf.load_pretrained(folder, config=wanted)


def test_the_folder_of_a_run_is_told_apart(tmp_path):
  (tmp_path / 'config.json').write_text('{"model": {}, "stages": []}')
  with pytest.raises(ConfigError, match='launch.train, not of Hugging Face: use launch.convert --checkpoint='):
    hf.load_pretrained(tmp_path)
