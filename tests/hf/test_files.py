"""Folders written by `transformers` and by us, both ways; what is wrong with a folder is said, all of it."""
import dataclasses
import json
import re

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from llm_jax import hf
from llm_jax.config import architecture as arch
from llm_jax.config import presets
from llm_jax.config.count import count_parameters
from llm_jax.config.errors import ConfigError
from llm_jax.hf.weights import parameter_shapes
from llm_jax.modules.transformer import Transformer
from tests.hf import peers


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """Two models as `transformers` writes them: in one file, and in several with an index."""
  made = {}
  for name, config in (('gpt2', peers.CASES['gpt2']), ('llama', peers.CASES['llama mqa, large head'])):
    made[name] = tmp_path_factory.mktemp(name)
    peers.make(config).save_pretrained(made[name], max_shard_size='20KB' if name == 'llama' else '1GB')
  assert len(list(made['llama'].glob('*.safetensors'))) > 2
  return made


def tensors(folder):
  return {k: v for file in folder.glob('*.safetensors') for k, v in safetensors.numpy.load_file(file).items()}


def same(got, want):
  assert got.keys() == want.keys()
  for name in want:
    assert got[name].dtype == want[name].dtype and got[name].shape == want[name].shape, name
    assert got[name].tobytes() == want[name].tobytes(), name


@pytest.mark.parametrize('name', ('gpt2', 'llama'))
def test_round_trip_is_byte_identical_and_loads_in_transformers(name, folders, tmp_path):
  config, params = hf.load_pretrained(folders[name])
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
  hf.save_pretrained(tmp_path, config, params)
  same(tensors(tmp_path), tensors(folders[name]))
  assert hf.load_pretrained(tmp_path)[0] == config

  tokens = torch.tensor(np.asarray(peers.batch().tokens)).long()
  load = transformers.AutoModelForCausalLM.from_pretrained
  theirs, info = load(tmp_path, output_loading_info=True)
  assert not any(info[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
  with torch.no_grad():
    assert torch.equal(theirs(tokens).logits, load(folders[name])(tokens).logits)


def test_bfloat16_files(folders, tmp_path):
  config, params = hf.load_pretrained(folders['llama'])
  half = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16).astype(np.float32), params)
  hf.save_pretrained(tmp_path, config, params, dtype='bfloat16')
  assert {str(t.dtype) for t in tensors(tmp_path).values()} == {'bfloat16'}
  jax.tree.map(np.testing.assert_array_equal, hf.load_pretrained(tmp_path)[1], half)


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
  np.testing.assert_array_equal(moved['prefix_1']['feed_forward']['up']['w'],
                                params['blocks']['block_0']['feed_forward']['up']['w'][1])


def test_names_of_the_bare_decoder_buffers_and_a_repeated_head(folders):
  """As the GPT-2 files on the Hub: no `transformer.`, and the causal mask beside the weights."""
  config, params = hf.load_pretrained(folders['gpt2'])
  state = {name.removeprefix('transformer.'): t for name, t in hf.state_dict_from_params(config, params).items()}
  state |= {'h.0.attn.bias': np.ones((1, 1, 8, 8), np.uint8), 'lm_head.weight': state['wte.weight'].copy()}
  jax.tree.map(np.testing.assert_array_equal, hf.params_from_state_dict(config, state), params)
  with pytest.raises(ConfigError, match='twice'):
    hf.params_from_state_dict(config, state | {'transformer.wte.weight': state['wte.weight']})
  state['lm_head.weight'][0, 0] += 1
  with pytest.raises(ConfigError, match=r'extra lm_head\.weight'):
    hf.params_from_state_dict(config, state)


def test_parameters_work_as_they_come(folders):
  """As an argument and as constants of a jitted function."""
  config, params = hf.load_pretrained(folders['gpt2'])
  model, tokens = Transformer(config), peers.batch().tokens
  want = jax.jit(model.apply)({'params': params}, tokens)
  got = jax.jit(lambda tokens: model.apply({'params': params}, tokens))(tokens)
  np.testing.assert_allclose(got, want, atol=1e-6)


# ------------------------------------------------------------------------------------------------ config.json
def test_published_configs_give_the_presets():
  """The entries of `openai-community/gpt2` and `meta-llama/Meta-Llama-3-8B`, as their files state them."""
  gpt2 = dict(
    activation_function='gelu_new', architectures=['GPT2LMHeadModel'], attn_pdrop=0.1, bos_token_id=50256,
    embd_pdrop=0.1, eos_token_id=50256, initializer_range=0.02, layer_norm_epsilon=1e-05, model_type='gpt2',
    n_ctx=1024, n_embd=768, n_head=12, n_layer=12, n_positions=1024, resid_pdrop=0.1, summary_activation=None,
    summary_first_dropout=0.1,
    summary_proj_to_labels=True, summary_type='cls_index', summary_use_proj=True,
    task_specific_params={'text-generation': {'do_sample': True, 'max_length': 50}}, vocab_size=50257)
  llama = dict(
    architectures=['LlamaForCausalLM'], attention_bias=False, attention_dropout=0.0, bos_token_id=128000,
    eos_token_id=128001, hidden_act='silu', hidden_size=4096, initializer_range=0.02, intermediate_size=14336,
    max_position_embeddings=8192, model_type='llama', num_attention_heads=32, num_hidden_layers=32,
    num_key_value_heads=8, pretraining_tp=1, rms_norm_eps=1e-05, rope_scaling=None, rope_theta=500000.0,
    tie_word_embeddings=False, torch_dtype='bfloat16', transformers_version='4.40.0.dev0', use_cache=True,
    vocab_size=128256)
  assert hf.config_from_hf(gpt2) == presets.gpt2_124m(dropout=0.1)
  assert hf.config_from_hf(llama) == presets.llama3_8b()


@pytest.mark.parametrize('preset, count', ((presets.gpt2_124m, 124_439_808), (presets.llama3_8b, 8_030_261_248)))
def test_parameter_counts(preset, count):
  """As the published checkpoints hold; shapes only, nothing is allocated."""
  config = preset()
  assert sum(np.prod(shape, dtype=np.int64) for shape in parameter_shapes(config).values()) == count
  assert count_parameters(config) == count
  theirs = transformers.AutoConfig.for_model(**hf.config_to_hf(config))
  with torch.device('meta'):
    assert transformers.AutoModelForCausalLM.from_config(theirs).num_parameters() == count


def test_both_ways_to_state_rope():
  old = dict(model_type='llama', rope_theta=5e5, rope_scaling=None)
  new = dict(model_type='llama', rope_parameters=dict(rope_type='default', rope_theta=5e5))
  assert hf.config_from_hf(old) == hf.config_from_hf(new) == hf.config_from_hf(old | new)
  assert hf.config_from_hf(old).positions == arch.RoPE(5e5)


@pytest.mark.parametrize('model_type, entries, names', (
  ('mamba', {}, 'model_type'),
  (None, {}, 'model_type'),
  ('llama', dict(rope_scaling=dict(type='linear', factor=2.0)), 'rope_scaling'),
  ('llama', dict(rope_parameters=dict(rope_type='llama3', rope_theta=5e5, factor=8.0)), 'rope_parameters'),
  ('llama', dict(rope_parameters=dict(rope_theta=1e4, partial_rotary_factor=0.5)), 'rope_parameters'),
  ('llama', dict(hidden_act='gelu_fast'), 'hidden_act'),
  ('llama', dict(attention_dropout=0.1), 'attention_dropout'),
  ('llama', dict(sliding_window=4096), 'sliding_window'),
  ('llama', dict(quantization_config=dict(bits=4)), 'quantization_config'),
  ('llama', dict(auto_map=dict(AutoModel='evil.Model')), 'auto_map'),
  ('llama', dict(hidden_size=-1), 'hidden_size'),
  ('llama', dict(num_hidden_layers='2'), 'num_hidden_layers'),
  ('llama', dict(rms_norm_eps=float('nan')), 'rms_norm_eps'),
  ('llama', dict(rope_scaling='linear'), 'rope_scaling'),
  ('llama', dict(hidden_size=100), r'pattern\[0\].attention.num_heads'),
  ('llama', dict(num_key_value_heads=5), 'num_kv_heads'),
  ('gpt2', dict(scale_attn_weights=False), 'scale_attn_weights'),
  ('gpt2', dict(scale_attn_by_inverse_layer_idx=True), 'scale_attn_by_inverse_layer_idx'),
  ('gpt2', dict(add_cross_attention=True), 'add_cross_attention'),
  ('gpt2', dict(attn_pdrop=0.2), 'attn_pdrop'),
))
def test_unsupported_entries_are_refused(model_type, entries, names):
  with pytest.raises(ConfigError, match=f'^{names} = '):
    hf.config_from_hf(dict(model_type=model_type) | entries)


LLAMA, GPT2 = presets.llama(32, 2, 4), presets.gpt2(32, 2, 4)


@pytest.mark.parametrize('config, names', (
  (dataclasses.replace(LLAMA, pattern=GPT2.pattern), 'model.pattern[0].feed_forward'),
  (dataclasses.replace(LLAMA, norm=arch.RMSNorm(1e-3)), 'model.pattern[0].norm.eps'),
  (dataclasses.replace(LLAMA, dropout=0.1), 'model.dropout'),
  (presets.llama(30, 2, 4, head_dim=8), 'model.d_model'),
  (dataclasses.replace(GPT2, norm=arch.RMSNorm()), 'model.norm'),
  (dataclasses.replace(GPT2, pattern=(
    dataclasses.replace(GPT2.pattern[0], attention=arch.Attention(4, num_kv_heads=2, bias=True)),)),
   'model.pattern[0].attention.num_kv_heads'),
  (dataclasses.replace(GPT2, pattern=(*GPT2.pattern, dataclasses.replace(GPT2.pattern[0], norm=arch.LayerNorm(1e-6)))),
   'model.pattern[1].norm.eps'),
))
def test_what_no_family_has_is_not_exported(config, names, tmp_path):
  with pytest.raises(ConfigError, match=f'^{re.escape(names)} = '):
    hf.save_pretrained(tmp_path / 'new', config, {})
  assert not (tmp_path / 'new').exists()


# ------------------------------------------------------------------------------------------------ bad folders
def broken(folder, target, change):
  """A copy of `folder` in one file, with `change` applied to its tensors."""
  target.mkdir(exist_ok=True)
  state = tensors(folder)
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
    hf.load_pretrained(broken(folders['llama'], tmp_path, change))
  message = str(error.value)
  assert str(tmp_path) in message and '5 do not fit' in message and '\n' not in message
  for part in ('missing model.norm.weight [32]', 'extra model.layers.2.mlp.up_proj.weight [72, 32]',
               'model.layers.0.self_attn.q_proj.weight is [32, 96], the architecture needs [96, 32]',
               f'lm_head.weight is [{peers.VOCAB - 1}, 32]', 'model.layers.1.input_layernorm.weight is int8'):
    assert part in message


def test_pickled_weights_are_refused(folders, tmp_path):
  (tmp_path / 'config.json').write_text((folders['gpt2'] / 'config.json').read_text())
  with pytest.raises(ConfigError, match='neither'):
    hf.load_pretrained(tmp_path)
  (tmp_path / 'pytorch_model.bin').write_bytes(b'cos\nsystem\n(S"exit 1"\ntR.')
  with pytest.raises(ConfigError, match='pytorch_model.bin.*safetensors'):
    hf.load_pretrained(tmp_path)


@pytest.mark.parametrize('index, match', (
  ('{', 'not a readable JSON'), ('[]', 'JSON object'), ('{}', 'weight_map'),
  (json.dumps(dict(weight_map=dict(a='../model.safetensors'))), 'same folder'),
  (json.dumps(dict(weight_map=dict(a='/etc/model.safetensors'))), 'same folder'),
  (json.dumps(dict(weight_map=dict(a='model.bin'))), 'same folder'),
  (json.dumps(dict(weight_map=dict(a='absent.safetensors'))), 'missing'),
))
def test_bad_index(index, match, folders, tmp_path):
  (tmp_path / 'config.json').write_text((folders['gpt2'] / 'config.json').read_text())
  (tmp_path / 'model.safetensors.index.json').write_text(index)
  with pytest.raises(ConfigError, match=match):
    hf.load_pretrained(tmp_path)


def test_truncated_weights_and_absent_config(folders, tmp_path):
  with pytest.raises(ConfigError, match=r'config\.json'):
    hf.load_pretrained(tmp_path)
  file = broken(folders['gpt2'], tmp_path, lambda state: None) / 'model.safetensors'
  file.write_bytes(file.read_bytes()[:-1])
  with pytest.raises(ConfigError, match=r'model\.safetensors.*not a readable safetensors'):
    hf.load_pretrained(tmp_path)
