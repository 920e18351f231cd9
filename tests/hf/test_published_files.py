"""Files as they are published: bookkeeping beside the decoder, models inside of wrappers, families that look alike."""
import json
import logging

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

import llm_jax
from llm_jax import hf
from llm_jax.config import presets
from llm_jax.config.errors import ConfigError
from llm_jax.hf import fields
from tests.hf import hf_models


@pytest.fixture
def folder(tmp_path):
  hf_models.make(hf_models.CASES['llama gqa']).save_pretrained(tmp_path / 'hub')
  return tmp_path / 'hub'


@pytest.fixture(autouse=True)
def say_again():
  fields._say_what_is_passed_over.cache_clear()


def change(folder, entries):
  path = folder / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def rename(folder, new_name):
  path = folder / 'model.safetensors'
  tensors = safetensors.numpy.load_file(path)
  safetensors.numpy.save_file({new_name(name): tensor for name, tensor in tensors.items()}, path, {'format': 'pt'})


# ---------------------------------------------------------------------------------------------- entries of config.json
BOOKKEEPING = {
  'is_llama_config': True, 'rope_interleaved': False, 'unsloth_fixed': True, 'unsloth_version': '2026.3',
  'transformers.js_config': {'dtype': 'q4', 'kv_cache_dtype': {'q4f16': 'float16'}}, 'tokenizer_class': 'Llama',
  '_flash_attn_2_enabled': True, 'torchscript': True, 'model_max_length': 2_048, 'finetuning_task': 'chat',
  'license': 'apache-2.0', 'training_steps': 1_000, 'pad_token': '<pad>', 'max_seq_len': 2_048,
  'pretrained_from': 'elsewhere', 'converted_by': 'a tool', 'neftune_noise_alpha': 5.0,
}


def test_bookkeeping_is_passed_over_in_one_line(folder, caplog):
  plain = hf.read_config(folder)
  change(folder, BOOKKEEPING)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation='eager')
  tokens = np.arange(12).reshape(1, -1)
  with caplog.at_level(logging.WARNING):
    config, params = hf.load_pretrained(folder)
    hf.read_config(folder)
  assert config == plain
  with torch.no_grad():
    want = theirs(torch.tensor(tokens)).logits
  np.testing.assert_allclose(llm_jax.Transformer(config).apply({'params': params}, tokens), want, atol=1e-5)
  [record] = caplog.records
  passed = 'is_llama_config, unsloth_fixed, unsloth_version, transformers.js_config, license, training_steps, ' \
           'pretrained_from, converted_by, neftune_noise_alpha'
  assert record.getMessage() == f'config.json: {passed}: no part of the decoder, passed over'


@pytest.mark.parametrize('entry, value', [
  ('rope_interleaved', True), ('use_qk_norm', True), ('qk_layernorm', True), ('attentionMultiplier', 0.5),
  ('residual_multiplier', 0.2), ('logits_scaling', 8.0), ('embedding_multiplier', 12.0), ('num_experts', 8),
  ('alibi', True), ('partial_rotary_factor', 0.5), ('no_bias', True), ('pruned_heads', {'0': [1]}), ('mup_base', 256),
  ('original_max_position_embeddings', 16), ('layer_norm_type', 'p1'), ('max_window_layers', 1), ('soft_cap', 30.0),
  ('sm_scale', 0.1), ('dense_act_fn', 'relu'), ('conv_kernel', 4),
])
def test_what_may_change_a_number_is_refused_with_a_way_out(entry, value):
  values = hf_models.llama().to_dict()
  with pytest.raises(ConfigError, match=f'^{entry} = .* may change what is computed: take it out'):
    hf.config_from_hf(values | {entry: value})


@pytest.mark.parametrize('entry', ['quantization_config', 'quantization', 'compression_config'])
def test_quantised_weights_are_named(entry):
  with pytest.raises(ConfigError, match=rf'^{entry} = .*quantised weights are not read: .*dequantize\(\)'):
    hf.config_from_hf(hf_models.llama().to_dict() | {entry: {'bits': 4}})


@pytest.mark.parametrize('text, known', [('llama', 'can be read alone'), ('phi', 'and only')])
def test_the_text_part_of_a_multimodal_model_is_named(text, known):
  shell = {'model_type': 'llava', 'text_config': {'model_type': text}, 'vision_config': {}}
  with pytest.raises(ConfigError, match=f"^model_type = 'llava': .*text part \\(text_config\\) is a {text}, .*{known}"):
    hf.config_from_hf(shell)


# ---------------------------------------------------------------------------------------------- names of tensors
@pytest.mark.parametrize('new_name, message', [
  (lambda name: f'module.{name}', "'module.' in its name .*DistributedDataParallel: save model.module"),
  (lambda name: f'_orig_mod.{name}', "'_orig_mod.' in its name .*torch.compile"),
  (lambda name: f'module._orig_mod.{name}', "'module._orig_mod.' in its name .*torch.compile"),
  (lambda name: name.replace('self_attn.', 'self_attn._checkpoint_wrapped_module.').replace(
    'mlp.', 'mlp._checkpoint_wrapped_module.'), 'from activation checkpointing'),
  (lambda name: f'base_model.model.{name}', 'from PEFT: merge the adapter'),
  (lambda name: f'language_model.{name}', 'several parts: save its language model'),
  (lambda name: name.replace('model.', 'model.language_model.'), 'several parts: save its language model'),
  (lambda name: f'student.net.{name}', "'student.net.' in its name .*save the model itself"),
])
def test_wrappers_are_named_with_the_way_out(new_name, message, folder):
  rename(folder, new_name)
  for read in (hf.load_pretrained, lambda path: hf.check_pretrained(path, hf.read_config(path))):
    with pytest.raises(ConfigError, match=message) as error:
      read(folder)
    assert len(str(error.value)) < 600 and str(folder) in str(error.value)


def test_a_compiled_models_names_of_gpt2_without_its_prefix(tmp_path):
  hf_models.make(hf_models.CASES['gpt2']).save_pretrained(tmp_path)
  rename(tmp_path, lambda name: '_orig_mod.' + name.removeprefix('transformer.'))
  with pytest.raises(ConfigError, match='torch.compile'):
    hf.load_pretrained(tmp_path)


def test_an_adapter_is_named(folder, tmp_path):
  path = folder / 'model.safetensors'
  tensors = safetensors.numpy.load_file(path)
  tensors['model.layers.0.self_attn.q_proj.lora_A.weight'] = np.zeros((2, 32), np.float32)
  safetensors.numpy.save_file(tensors, path, {'format': 'pt'})
  with pytest.raises(ConfigError, match=r'lora_A.weight.*merge_and_unload'):
    hf.load_pretrained(folder)
  alone = tmp_path / 'adapter'
  alone.mkdir()
  (alone / 'adapter_config.json').write_text('{"peft_type": "LORA"}')
  safetensors.numpy.save_file({'base_model.model.x.lora_A.weight': np.zeros((2, 2), np.float32)},
                              alone / 'adapter_model.safetensors')
  with pytest.raises(ConfigError, match='an adapter of PEFT without its model: merge it into'):
    hf.load_pretrained(alone)


# ---------------------------------------------------------------------------------------------- families
@pytest.mark.parametrize('config', [
  hf_models.mistral(sliding_window=None), hf_models.mistral(), hf_models.mistral(sliding_window=None, head_dim=12),
  hf_models.llama(), hf_models.mixtral(sliding_window=7),
])
def test_a_model_goes_out_as_the_family_that_it_came_in_as(config, tmp_path):
  hf_models.make(config).save_pretrained(tmp_path / 'in')
  hf.save_pretrained(tmp_path / 'out', *hf.load_pretrained(tmp_path / 'in'))
  before, after = (transformers.AutoConfig.from_pretrained(tmp_path / name) for name in ('in', 'out'))
  assert after.architectures == before.architectures and type(after) is type(before)
  theirs, ours = hf_models.tensors(tmp_path / 'in'), hf_models.tensors(tmp_path / 'out')
  assert theirs.keys() == ours.keys() and all(np.array_equal(theirs[name], ours[name]) for name in theirs)


def test_a_family_that_is_none_is_refused():
  config = presets.llama(32, 2, 4)
  object.__setattr__(config, 'family', 'mistrel')
  with pytest.raises(ConfigError, match=r"^model\.family = 'mistrel': use None, or one of"):
    hf.config_to_hf(config)
