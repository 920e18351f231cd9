"""`config.json` to our architecture and back; what we cannot express is refused by name."""
import dataclasses
import math
import re

import numpy as np
import pytest
import torch
import transformers

from llm_jax import hf
from llm_jax.config import presets
from llm_jax.config.errors import ConfigError
from llm_jax.config.model import architecture as arch
from llm_jax.hf import fields
from llm_jax.hf.configs import resolved
from llm_jax.hf.parts import arrange
from llm_jax.hf.weights import parameter_shapes
from llm_jax.modules.feed_forward import ACTIVATIONS
from tests.hf import hf_models, published_configs

GPT2_ENTRIES = dict(
  activation_function='gelu_new', architectures=['GPT2LMHeadModel'], attn_pdrop=0.1, bos_token_id=50256,
  embd_pdrop=0.1, eos_token_id=50256, initializer_range=0.02, layer_norm_epsilon=1e-05, model_type='gpt2', n_ctx=1024,
  n_embd=768, n_head=12, n_layer=12, n_positions=1024, resid_pdrop=0.1, summary_activation=None,
  summary_first_dropout=0.1, summary_proj_to_labels=True, summary_type='cls_index', summary_use_proj=True,
  task_specific_params={'text-generation': {'do_sample': True, 'max_length': 50}}, vocab_size=50257)
GPT_ENTRIES = dict(
  afn='gelu', architectures=['OpenAIGPTLMHeadModel'], attn_pdrop=0.1, embd_pdrop=0.1, initializer_range=0.02,
  layer_norm_epsilon=1e-05, model_type='openai-gpt', n_ctx=512, n_embd=768, n_head=12, n_layer=12, n_positions=512,
  n_special=0, predict_special_tokens=True, resid_pdrop=0.1, summary_activation=None, summary_first_dropout=0.1,
  summary_proj_to_labels=True, summary_type='cls_index', summary_use_proj=True, vocab_size=40478)
LLAMA_ENTRIES = dict(
  architectures=['LlamaForCausalLM'], attention_bias=False, attention_dropout=0.0, bos_token_id=128000,
  eos_token_id=128001, hidden_act='silu', hidden_size=4096, initializer_range=0.02, intermediate_size=14336,
  max_position_embeddings=8192, model_type='llama', num_attention_heads=32, num_hidden_layers=32,
  num_key_value_heads=8, pretraining_tp=1, rms_norm_eps=1e-05, rope_scaling=None, rope_theta=500000.0,
  tie_word_embeddings=False, torch_dtype='bfloat16', transformers_version='4.40.0.dev0', use_cache=True,
  vocab_size=128256)
LLAMA31_ENTRIES = LLAMA_ENTRIES | dict(
  eos_token_id=[128001, 128008, 128009], max_position_embeddings=131072, mlp_bias=False,
  rope_scaling=dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192,
                    rope_type='llama3'))
MISTRAL_ENTRIES = dict(
  architectures=['MistralForCausalLM'], bos_token_id=1, eos_token_id=2, hidden_act='silu', hidden_size=4096,
  initializer_range=0.02, intermediate_size=14336, max_position_embeddings=32768, model_type='mistral',
  num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=8, rms_norm_eps=1e-05, rope_theta=10000.0,
  sliding_window=4096, tie_word_embeddings=False, torch_dtype='bfloat16', use_cache=True, vocab_size=32000)
MIXTRAL_ENTRIES = MISTRAL_ENTRIES | dict(
  architectures=['MixtralForCausalLM'], model_type='mixtral', num_experts_per_tok=2, num_local_experts=8,
  output_router_logits=False, rope_theta=1000000.0, router_aux_loss_coef=0.02, sliding_window=None)
GEMMA_ENTRIES = dict(
  architectures=['GemmaForCausalLM'], attention_bias=False, attention_dropout=0.0, bos_token_id=2, eos_token_id=1,
  head_dim=256, hidden_act='gelu', hidden_activation=None, hidden_size=2048, initializer_range=0.02,
  intermediate_size=16384, max_position_embeddings=8192, model_type='gemma', num_attention_heads=8,
  num_hidden_layers=18, num_key_value_heads=1, pad_token_id=0, rms_norm_eps=1e-06, rope_scaling=None,
  rope_theta=10000.0, torch_dtype='bfloat16', use_cache=True, vocab_size=256000)
GEMMA2_ENTRIES = dict(
  architectures=['Gemma2ForCausalLM'], attention_bias=False, attention_dropout=0.0, attn_logit_softcapping=50.0,
  bos_token_id=2, cache_implementation='hybrid', eos_token_id=1, final_logit_softcapping=30.0, head_dim=128,
  hidden_act='gelu_pytorch_tanh', hidden_activation='gelu_pytorch_tanh', hidden_size=4608, initializer_range=0.02,
  intermediate_size=36864, max_position_embeddings=8192, model_type='gemma2', num_attention_heads=32,
  num_hidden_layers=46, num_key_value_heads=16, pad_token_id=0, query_pre_attn_scalar=144, rms_norm_eps=1e-06,
  rope_theta=10000.0, sliding_window=4096, sliding_window_size=4096, torch_dtype='float32', use_cache=True,
  vocab_size=256000)
DEEPSEEK_ENTRIES = dict(
  architectures=['DeepseekV3ForCausalLM'], attention_bias=False, attention_dropout=0.0, aux_loss_alpha=0.001,
  bos_token_id=0, eos_token_id=1, ep_size=1, first_k_dense_replace=3, hidden_act='silu', hidden_size=7168,
  initializer_range=0.02, intermediate_size=18432, kv_lora_rank=512, max_position_embeddings=163840,
  model_type='deepseek_v3', moe_intermediate_size=2048, moe_layer_freq=1, n_group=8, n_routed_experts=256,
  n_shared_experts=1, norm_topk_prob=True, num_attention_heads=128, num_experts_per_tok=8, num_hidden_layers=61,
  num_key_value_heads=128, num_nextn_predict_layers=1, pretraining_tp=1, q_lora_rank=1536, qk_nope_head_dim=128,
  qk_rope_head_dim=64, rms_norm_eps=1e-06, rope_scaling=dict(
    beta_fast=32, beta_slow=1, factor=40, mscale=1.0, mscale_all_dim=1.0, original_max_position_embeddings=4096,
    type='yarn'),
  rope_theta=10000, routed_scaling_factor=2.5, scoring_func='sigmoid', seq_aux=True, tie_word_embeddings=False,
  topk_group=4, topk_method='noaux_tc', torch_dtype='bfloat16', use_cache=True, v_head_dim=128, vocab_size=129280)

PYTHIA_ENTRIES = dict(
  architectures=['GPTNeoXForCausalLM'], bos_token_id=0, eos_token_id=0, hidden_act='gelu', hidden_size=512,
  initializer_range=0.02, intermediate_size=2048, layer_norm_eps=1e-05, max_position_embeddings=2048,
  model_type='gpt_neox', num_attention_heads=8, num_hidden_layers=6, rotary_emb_base=10000, rotary_pct=0.25,
  tie_word_embeddings=False, torch_dtype='float16', transformers_version='4.24.0', use_cache=True,
  use_parallel_residual=True, vocab_size=50304)
NEOX_ENTRIES = dict(
  architectures=['GPTNeoXForCausalLM'], attention_probs_dropout_prob=0, bos_token_id=0, eos_token_id=0,
  hidden_act='gelu_fast', hidden_dropout_prob=0, hidden_size=6144, initializer_range=0.02, intermediate_size=24576,
  layer_norm_eps=1e-05, max_position_embeddings=2048, model_type='gpt_neox', num_attention_heads=64,
  num_hidden_layers=44, rotary_emb_base=10000, rotary_pct=0.25, tie_word_embeddings=False, torch_dtype='float16',
  transformers_version='4.19.0.dev0', use_cache=True, vocab_size=50432)

GPT_OSS_ENTRIES = dict(
  architectures=['GptOssForCausalLM'], attention_bias=True, attention_dropout=0.0, eos_token_id=200002,
  experts_per_token=4, head_dim=64, hidden_act='silu', hidden_size=2880, initial_context_length=4096,
  initializer_range=0.02, intermediate_size=2880, layer_types=['sliding_attention', 'full_attention'] * 12,
  max_position_embeddings=131072, model_type='gpt_oss', num_attention_heads=64, num_experts_per_tok=4,
  num_hidden_layers=24, num_key_value_heads=8, num_local_experts=32, output_router_logits=False, pad_token_id=199999,
  quantization_config=dict(
    modules_to_not_convert=['model.layers.*.self_attn', 'model.layers.*.mlp.router', 'model.embed_tokens', 'lm_head'],
    quant_method='mxfp4'),
  rms_norm_eps=1e-05, rope_scaling=dict(
    beta_fast=32.0, beta_slow=1.0, factor=32.0, original_max_position_embeddings=4096, rope_type='yarn',
    truncate=False),
  rope_theta=150000, router_aux_loss_coef=0.9, sliding_window=128, swiglu_limit=7.0, tie_word_embeddings=False,
  transformers_version='4.55.0.dev0', use_cache=True, vocab_size=201088)

PUBLISHED = {
  'openai/gpt-oss-20b': (GPT_OSS_ENTRIES, presets.gpt_oss_20b()),
  'openai/gpt-oss-120b': (GPT_OSS_ENTRIES | dict(
    layer_types=['sliding_attention', 'full_attention'] * 18, num_hidden_layers=36, num_local_experts=128),
    presets.gpt_oss_120b()),
  'EleutherAI/pythia-70m': (PYTHIA_ENTRIES, presets.pythia_70m()),
  'EleutherAI/gpt-neox-20b': (NEOX_ENTRIES, presets.gpt_neox_20b()),
  'openai-community/openai-gpt': (GPT_ENTRIES, presets.gpt1_117m(dropout=0.1)),
  'openai-community/gpt2': (GPT2_ENTRIES, presets.gpt2_124m(dropout=0.1)),
  'meta-llama/Meta-Llama-3-8B': (LLAMA_ENTRIES, presets.llama3_8b()),
  'meta-llama/Llama-3.1-8B': (LLAMA31_ENTRIES, presets.llama3_1_8b()),
  'mistralai/Mistral-7B-v0.1': (MISTRAL_ENTRIES, presets.mistral_7b()),
  'mistralai/Mixtral-8x7B-v0.1': (MIXTRAL_ENTRIES, presets.mixtral_8x7b()),
  'google/gemma-2b': (GEMMA_ENTRIES, presets.gemma_2b()),
  'google/gemma-2-27b': (GEMMA2_ENTRIES, presets.gemma2_27b()),
  'deepseek-ai/DeepSeek-V3': (DEEPSEEK_ENTRIES, presets.deepseek_v3()),
  **published_configs.PUBLISHED,
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_configs_are_the_presets(name):
  """Their `config.json`, entry by entry (DeepSeek's without the quantisation and the code that it names)."""
  entries, preset = PUBLISHED[name]
  got = hf.config_from_hf(entries)
  assert resolved(got) == resolved(preset) and got.max_length == preset.max_length
  assert parameter_shapes(got) == parameter_shapes(preset)


# Others in GPT-NeoX's form: how they differ from Pythia-70M; how much of a head is turned; the kind of block.
RELATED = {
  'EleutherAI/polyglot-ko-1.3b': (dict(
    hidden_size=2048, intermediate_size=8192, num_attention_heads=16, num_hidden_layers=24, rotary_pct=0.5,
    vocab_size=30080), 64, arch.ParallelBlock),
  'togethercomputer/RedPajama-INCITE-Base-3B-v1': (dict(
    hidden_size=2560, intermediate_size=10240, num_attention_heads=32, num_hidden_layers=32, rotary_pct=1.0,
    use_parallel_residual=False, vocab_size=50432), 80, arch.Block),
  'databricks/dolly-v2-3b': (dict(
    custom_pipelines={'text-generation': {'impl': 'instruct_pipeline.InstructionTextGenerationPipeline'}},
    hidden_size=2560, intermediate_size=10240, num_attention_heads=32, num_hidden_layers=32, vocab_size=50280), 20,
    arch.ParallelBlock),
  'stabilityai/stablelm-base-alpha-3b': (dict(
    hidden_size=4096, intermediate_size=16384, max_position_embeddings=4096, num_attention_heads=32,
    num_hidden_layers=16, vocab_size=50688), 32, arch.ParallelBlock),
}


@pytest.mark.parametrize('name', RELATED)
def test_models_in_the_form_of_gpt_neox(name):
  changes, turned, kind = RELATED[name]
  config = hf.config_from_hf(PYTHIA_ENTRIES | changes)
  [block] = config.pattern
  assert isinstance(block, kind) and block.attention.rotary_size(config.d_model) == turned
  theirs = transformers.AutoConfig.for_model(**hf.config_to_hf(config))
  assert theirs.rope_parameters['partial_rotary_factor'] == changes.get('rotary_pct', 0.25)
  with torch.device('meta'):
    count = transformers.AutoModelForCausalLM.from_config(theirs).num_parameters()
  assert count == sum(map(math.prod, parameter_shapes(config).values()))


def test_published_models_of_other_architectures_are_refused_with_the_reason():
  with pytest.raises(ConfigError, match="^model_type = 'phimoe': Phi-3.5-MoE chooses its experts by SparseMixer"):
    hf.config_from_hf(published_configs.PHI3_5_MOE_ENTRIES)


@pytest.mark.parametrize('name', PUBLISHED)
def test_exported_configs_give_the_same_decoder(name):
  preset = PUBLISHED[name][1]
  values = hf.config_to_hf(preset)
  got = hf.config_from_hf(values)
  assert parameter_shapes(got) == parameter_shapes(preset) and hf.config_to_hf(got) == values
  theirs = transformers.AutoConfig.for_model(**values)
  with torch.device('meta'):
    count = transformers.AutoModelForCausalLM.from_config(theirs).num_parameters()
  shapes = {path: shape for path, shape in parameter_shapes(preset).items() if not path.startswith('multi_token')}
  buffers = sum(math.prod(shape) for path, shape in shapes.items() if path.endswith('balance/bias'))
  assert sum(map(math.prod, shapes.values())) == count + buffers


@pytest.mark.parametrize('case', hf_models.CASES)
def test_configs_round_trip(case):
  """As transformers writes it, to ours, out and in again; their class reads what we wrote."""
  theirs = hf_models.CASES[case]
  config = hf.config_from_hf(theirs.to_dict())
  values = hf.config_to_hf(config)
  assert resolved(hf.config_from_hf(values)) == resolved(config)
  again = transformers.AutoConfig.for_model(**values).to_dict()
  assert again['model_type'] == theirs.model_type
  assert resolved(hf.config_from_hf(again)) == resolved(config)


@pytest.mark.parametrize('name', fields.ACTIVATIONS)
def test_activations_are_those_of_transformers(name):
  x = np.linspace(-6, 6, 241, dtype=np.float32)
  want = transformers.activations.ACT2FN[name](torch.tensor(x)).numpy()
  np.testing.assert_allclose(ACTIVATIONS[fields.ACTIVATIONS[name]](x), want, rtol=0, atol=1e-6)


def test_what_old_files_say_of_the_output_changes_no_decoder():
  old = dict(max_length=4_096, min_length=0, do_sample=True, num_beams=4, num_return_sequences=1, temperature=0.6,
             top_k=50, top_p=0.9, typical_p=1.0, repetition_penalty=1.0, length_penalty=1.0, early_stopping=True,
             no_repeat_ngram_size=3, is_decoder=True, output_hidden_states=True, output_attentions=True,
             output_past=True, num_labels=1, _num_labels=1)  # as the larger GPT-2 and DistilGPT-2 have them
  values = hf_models.llama().to_dict()
  assert hf.config_from_hf(values | old) == hf.config_from_hf(values)


def test_both_ways_to_state_rope():
  old = dict(model_type='llama', rope_theta=5e5, rope_scaling=None)
  new = dict(model_type='llama', rope_parameters=dict(rope_type='default', rope_theta=5e5))
  assert hf.config_from_hf(old) == hf.config_from_hf(new) == hf.config_from_hf(old | new)
  assert hf.config_from_hf(old).positions == arch.RoPE(5e5)
  linear = dict(model_type='llama', rope_scaling=dict(type='linear', factor=2.0))
  assert hf.config_from_hf(linear).positions == arch.RoPE(1e4, arch.LinearScaling(2.0))
  assert hf.config_from_hf(hf.config_to_hf(hf.config_from_hf(linear))).positions.scaling == arch.LinearScaling(2.0)


def test_yarn_as_deepseek_states_it():
  """mscale and mscale_all_dim: the scores times the second's square, cosines and sines times their ratio."""
  entries = DEEPSEEK_ENTRIES | {'rope_scaling': DEEPSEEK_ENTRIES['rope_scaling'] | dict(mscale=0.5)}
  config = hf.config_from_hf(entries)
  scale, ratio = 0.1 * math.log(40) + 1, (0.05 * math.log(40) + 1) / (0.1 * math.log(40) + 1)
  assert config.pattern[0].attention.scale == pytest.approx(scale ** 2 / math.sqrt(192))
  assert config.positions.scaling.magnitude == pytest.approx(ratio)
  given = hf.config_to_hf(config)['rope_parameters']
  assert given['mscale'] == pytest.approx(0.5) and given['mscale_all_dim'] == pytest.approx(1.0)


def test_key_heads_of_null_are_as_many_as_heads():
  for family in ('llama', 'mistral', 'mixtral', 'gemma'):
    entries = dict(model_type=family, hidden_size=64, num_attention_heads=4, head_dim=16, num_key_value_heads=None)
    assert hf.config_from_hf(entries).pattern[0].attention.kv_heads == 4


@pytest.mark.parametrize('config, key', (
  (presets.llama(32, 2, 4, eps=0), 'rms_norm_eps'),
  (presets.mixtral(32, 2, 4, 2, 64, balance_weight=0), 'router_aux_loss_coef'),
  (presets.gemma2(32, 2, 4, 2, 64, head_dim=8, attention_soft_cap=50), 'attn_logit_softcapping'),
  (presets.gemma2(32, 2, 4, 2, 64, head_dim=8, logit_soft_cap=30), 'final_logit_softcapping'),
  (dataclasses.replace(presets.deepseek_v3(router_scale=2), multi_token=()), 'routed_scaling_factor'),
))
def test_whole_numbers_are_exported_as_floats(config, key):
  values = hf.config_to_hf(config)
  assert isinstance(values[key], float)
  assert getattr(transformers.AutoConfig.for_model(**values), key) == values[key]


def test_ntk_scaling_is_another_theta():
  config = presets.llama(32, 2, 4, head_dim=8, scaling=arch.NTKScaling(4.0))
  values = hf.config_to_hf(config)
  assert values['rope_theta'] == pytest.approx(1e4 * 4 ** (8 / 6)) and values['rope_scaling'] is None


@pytest.mark.parametrize('layers, prefix, pattern', (
  ('aaaa', '', 'a'), ('abab', '', 'ab'), ('aba', '', 'aba'), ('ababa', 'a', 'ba'), ('abbb', 'a', 'b'),
  ('abcabc', '', 'abc'), ('a', '', 'a'),
))
def test_prefix_and_pattern(layers, prefix, pattern):
  assert arrange(layers) == (tuple(prefix), tuple(pattern))


@pytest.mark.parametrize('model_type, entries, names', (
  ('mamba', {}, 'model_type'),
  (None, {}, 'model_type'),
  (['llama'], {}, 'model_type'),
  ('llama', dict(rope_scaling=dict(type='dynamic', factor=2.0)), 'rope_scaling'),
  ('llama', dict(rope_scaling=dict(type='linear')), 'rope_scaling'),
  ('llama', dict(rope_scaling=dict(type='linear', rope_type='yarn', factor=2.0)), 'rope_scaling'),
  ('llama', dict(rope_scaling=dict(type='linear', factor=2.0, other=1)), 'rope_scaling'),
  ('llama', dict(rope_scaling=dict(type='linear', factor='2')), r'rope_scaling\.factor'),
  ('llama', dict(rope_scaling=dict(type='linear', factor=2.0), rope_parameters=dict(rope_type='linear', factor=3.0)),
   'rope_parameters'),
  ('llama', dict(rope_scaling=dict(type='linear', factor=2.0), rope_theta=5e5,
                 rope_parameters=dict(rope_type='linear', factor=2.0, rope_theta=1e4)), 'rope_parameters'),
  ('llama', dict(rope_scaling=dict(type='default'), rope_parameters=dict(rope_type='linear', factor=2.0)),
   'rope_parameters'),
  ('llama', dict(rope_parameters=dict(rope_type='yarn', factor=2.0, original_max_position_embeddings=9,
                                      truncate='no')), r'rope_parameters\.truncate'),
  ('llama', dict(rope_parameters=dict(rope_type='llama3', rope_theta=5e5, factor=8.0)),
   r'rope_parameters\.original_max_position_embeddings'),
  ('llama', dict(rope_parameters=dict(rope_theta=1e4, partial_rotary_factor=0.5)), 'rope_parameters'),
  ('llama', dict(hidden_act='gelu_10'), 'hidden_act'),
  ('llama', dict(attention_dropout=0.1), 'attention_dropout'),
  ('llama', dict(sliding_window=4096), 'sliding_window'),
  ('llama', dict(quantization_config=dict(bits=4)), 'quantization_config'),
  ('llama', dict(auto_map=dict(AutoModel='evil.Model')), 'auto_map'),
  ('llama', dict(hidden_size=-1), 'hidden_size'),
  ('llama', dict(hidden_size=True), 'hidden_size'),
  ('llama', dict(num_hidden_layers='2'), 'num_hidden_layers'),
  ('llama', dict(tie_word_embeddings='yes'), 'tie_word_embeddings'),
  ('llama', dict(rms_norm_eps=float('nan')), 'rms_norm_eps'),
  ('llama', dict(rope_scaling='linear'), 'rope_scaling'),
  ('llama', dict(hidden_size=100), r'pattern\[0\].attention.num_heads'),
  ('llama', dict(num_key_value_heads=5), 'num_kv_heads'),
  ('gpt2', dict(scale_attn_weights=False), 'scale_attn_weights'),
  ('gpt2', dict(scale_attn_by_inverse_layer_idx=True), 'scale_attn_by_inverse_layer_idx'),
  ('gpt2', dict(add_cross_attention=True), 'add_cross_attention'),
  ('gpt2', dict(attn_pdrop=0.2), 'attn_pdrop'),
  ('openai-gpt', dict(afn='gelu_new'), 'afn'),
  ('gpt_oss', dict(quantization_config=dict(quant_method='gptq')), 'quantization_config'),
  ('gpt_oss', dict(experts_per_token=3), 'experts_per_token'),
  ('gpt_oss', dict(initial_context_length=8192), 'initial_context_length'),
  ('gpt_oss', dict(layer_types=['full_attention']), 'layer_types'),
  ('gpt_oss', dict(swiglu_limit=0), 'limit'),
  ('gpt_oss', dict(num_experts=4), 'num_experts'),
  ('gpt_oss', dict(rope_scaling=dict(type='longrope', factor=2.0)), 'rope_scaling'),
  ('mixtral', dict(quantization_config=dict(quant_method='mxfp4')), 'quantization_config'),
  ('gpt_neox', dict(rotary_pct=0), 'rotary_pct'),
  ('gpt_neox', dict(rotary_pct=0.01), 'rotary_pct'),
  ('gpt_neox', dict(rotary_pct=1.5), 'rotary_pct'),
  ('gpt_neox', dict(rotary_pct=0.1), r'pattern\[0\].attention.rotary_dim'),
  ('gpt_neox', dict(rotary_pct=0.25, rope_parameters=dict(partial_rotary_factor=0.5)),
   r'rope_parameters\.partial_rotary_factor'),
  ('gpt_neox', dict(hidden_dropout=0.1), 'attention_dropout'),
  ('gpt_neox', dict(attention_probs_dropout_prob=0.1), 'attention_probs_dropout_prob'),
  ('gpt_neox', dict(num_attention_heads=7), 'num_attention_heads'),
  ('gpt_neox', dict(rope_scaling=dict(type='dynamic', factor=2.0)), 'rope_scaling'),
  # Families that look alike: GPT-J, Falcon, StableLM, OPT, BLOOM, Phi.
  *((name, {}, 'model_type') for name in ('gptj', 'gpt_neo', 'falcon', 'stablelm', 'stablelm_epoch', 'opt', 'bloom',
                                          'mpt', 'codegen', 'gpt_neox_japanese')),
  ('mistral', dict(attention_bias=True), 'attention_bias'),
  ('mixtral', dict(router_jitter_noise=0.1), 'router_jitter_noise'),
  ('mixtral', dict(num_experts_per_tok=9), 'top_k'),
  ('qwen3_moe', dict(use_qk_norm=False), 'use_qk_norm'),
  ('qwen3_moe', dict(num_experts=8, num_local_experts=16), 'num_experts'),
  ('qwen3_moe', dict(num_experts=0), 'num_experts'),
  ('qwen3_moe', dict(num_experts=10**9), 'num_experts'),
  ('qwen3_moe', dict(num_experts_per_tok=129), 'top_k'),
  ('qwen3_moe', dict(mlp_only_layers=[-1]), 'mlp_only_layers'),
  ('qwen3_moe', dict(mlp_only_layers=3), 'mlp_only_layers'),
  ('qwen3_moe', dict(decoder_sparse_step=0), 'decoder_sparse_step'),
  ('qwen3_moe', dict(shared_expert_intermediate_size=512), 'shared_expert_intermediate_size'),
  ('qwen3_moe', dict(moe_intermediate_size=0), 'moe_intermediate_size'),
  ('phi3', dict(auto_map=dict(AutoModelForCausalLM='modeling_phi3.EvilForCausalLM')), 'auto_map'),
  ('phi3', dict(auto_map=dict(AutoConfig=['configuration_phi3.Phi3Config'])), 'auto_map'),
  ('phi3', dict(resid_pdrop=0.1), 'resid_pdrop'),
  ('phi3', dict(full_attn_mod=2), 'full_attn_mod'),
  ('phi3', dict(partial_rotary_factor=1.5), 'partial_rotary_factor'),
  ('phi3', dict(partial_rotary_factor=0.01), 'partial_rotary_factor'),
  ('phi3', dict(partial_rotary_factor=0.5, rope_parameters=dict(rope_theta=1e4, partial_rotary_factor=0.25)),
   'partial_rotary_factor'),
  ('phi3', dict(partial_rotary_factor=0.1), r'pattern\[0\].attention.rotary_dim'),
  ('phi3', dict(rope_scaling=dict(type='linear', factor=2.0)), r'rope_scaling\.rope_type'),
  ('phi3', dict(rope_scaling=dict(type='su', short_factor=[1.0] * 48)), 'rope_scaling'),
  ('phi3', dict(rope_scaling=dict(type='su', short_factor=[1.0] * 48, long_factor='2')), r'rope_scaling\.long_factor'),
  ('phi3', dict(rope_scaling=dict(type='su', short_factor=[1.0] * 48, long_factor=[0.0] * 48)),
   r'rope_scaling\.long_factor'),
  ('phi3', dict(max_position_embeddings=8192, rope_scaling=dict(
    type='longrope', short_factor=[1.0] * 47, long_factor=[2.0] * 47)), r'pattern\[0\].attention.head_dim'),
  ('phi3', dict(max_position_embeddings=8192, rope_scaling=dict(
    type='longrope', short_factor=[1.0] * 48, long_factor=[2.0] * 47)), 'long_factors'),
  ('phi3', dict(max_position_embeddings=8192, original_max_position_embeddings=2048, rope_scaling=dict(
    type='longrope', short_factor=[1.0] * 48, long_factor=[2.0] * 48, original_max_position_embeddings=4096)),
   r'rope_scaling\.original_max_position_embeddings'),
  ('gemma', dict(use_bidirectional_attention=True), 'use_bidirectional_attention'),
  ('gemma', dict(hidden_act='silu', hidden_activation='gelu_pytorch_tanh'), 'hidden_activation'),
  ('gemma', dict(hidden_act='gelu', hidden_activation='relu'), 'hidden_activation'),
  ('gemma', dict(hidden_act='gelu', hidden_activation='gelu'), 'hidden_activation'),
  ('gemma', dict(hidden_activation='silu'), 'hidden_activation'),
  ('gemma2', dict(layer_types=['full_attention']), 'layer_types'),
  ('gemma2', dict(layer_types=['chunked_attention'] * 26), 'layer_types'),
  ('gemma2', dict(query_pre_attn_scalar=0), 'query_pre_attn_scalar'),
  ('deepseek_v3', dict(rope_interleave=False), 'rope_interleave'),
  ('deepseek_v3', dict(norm_topk_prob=False), 'norm_topk_prob'),
  ('deepseek_v3', dict(norm_topk_prob=None), 'norm_topk_prob'),
  ('deepseek_v3', dict(rope_interleave=None), 'rope_interleave'),
  ('deepseek_v3', dict(scoring_func='softmax'), 'scoring_func'),
  ('deepseek_v3', dict(attention_bias=True), 'attention_bias'),
  ('deepseek_v3', dict(num_key_value_heads=8), 'num_key_value_heads'),
  ('deepseek_v3', dict(quantization_config=dict(quant_method='fp8')), 'quantization_config'),
  # Sizes that would take all memory before a tensor is looked at.
  ('llama', dict(num_hidden_layers=10**9), 'num_hidden_layers'),
  ('gpt2', dict(n_layer=10**9), 'n_layer'),
  ('mixtral', dict(num_local_experts=10**9), 'num_local_experts'),
  ('mixtral', dict(num_local_experts=10**4, num_hidden_layers=10**3), 'experts'),
  ('deepseek_v3', dict(num_nextn_predict_layers=10**9), 'num_nextn_predict_layers'),
))
def test_unsupported_entries_are_refused(model_type, entries, names):
  with pytest.raises(ConfigError, match=f'^{names} = '):
    hf.config_from_hf(dict(model_type=model_type) | entries)


LLAMA, GPT2, GEMMA2 = presets.llama(32, 2, 4), presets.gpt2(32, 2, 4), presets.gemma2(32, 2, 4, 2, 64, head_dim=8)
NEOX = presets.gpt_neox(32, 2, 4)
GPT_OSS = presets.gpt_oss(32, 2, 4, 2, 64, num_experts=4, head_dim=8)
MIXTRAL = presets.mixtral(32, 2, 4, 2, 64, num_experts=4, top_k=2)


def with_attention(config, **changes):
  block = config.pattern[0]
  return dataclasses.replace(config, pattern=(
    dataclasses.replace(block, attention=dataclasses.replace(block.attention, **changes)), *config.pattern[1:]))


def in_sequence(block):
  return arch.Block(block.attention, block.feed_forward, block.norm)


def with_feed_forward(config, **changes):
  block = config.pattern[0]
  return dataclasses.replace(config, pattern=(
    dataclasses.replace(block, feed_forward=dataclasses.replace(block.feed_forward, **changes)), *config.pattern[1:]))


@pytest.mark.parametrize('config, names', (
  (dataclasses.replace(LLAMA, pattern=GPT2.pattern), 'model.norm'),
  (with_attention(NEOX, rotary_dim=None, num_kv_heads=2), 'model.pattern[0].attention.num_kv_heads'),
  (with_attention(NEOX, window=8), 'model.pattern[0].attention.window'),
  (with_attention(NEOX, out_bias=False), 'model.pattern[0].attention.out_bias'),
  (with_feed_forward(NEOX, bias=False), 'model.pattern[0].feed_forward.bias'),
  (dataclasses.replace(NEOX, pattern=(*NEOX.pattern, in_sequence(NEOX.pattern[0]))),
   'model.pattern[1]'),
  (with_attention(GEMMA2, rotary_dim=4), 'model.pattern[0].attention.rotary_dim'),
  (with_attention(LLAMA, sinks=True), 'model.pattern[0].feed_forward'),
  (with_feed_forward(MIXTRAL, router=arch.SoftmaxRouter(bias=True)), 'model.pattern[0].feed_forward.router.bias'),
  (with_feed_forward(MIXTRAL, expert=arch.ClampedGLU(64)), 'model.pattern[0].feed_forward.expert'),
  (with_feed_forward(MIXTRAL, expert=arch.GLU(64, bias=True)), 'model.pattern[0].feed_forward.expert.bias'),
  (with_feed_forward(GPT_OSS, expert=arch.ClampedGLU(64)), 'model.pattern[0].feed_forward.expert.bias'),
  (with_feed_forward(GPT_OSS, router=arch.SoftmaxRouter()), 'model.pattern[0].feed_forward.router.bias'),
  (with_attention(GPT_OSS, rotary_dim=4), 'model.pattern[0].attention.rotary_dim'),
  (dataclasses.replace(LLAMA, norm=arch.RMSNorm(1e-3)), 'model.norm.eps'),
  (dataclasses.replace(LLAMA, dropout=0.1), 'model.dropout'),
  (dataclasses.replace(LLAMA, embedding_scale=2.0), 'model.embedding_scale'),
  (dataclasses.replace(LLAMA, logit_soft_cap=30.0), 'model.logit_soft_cap'),
  (dataclasses.replace(LLAMA, multi_token=LLAMA.pattern), 'model.multi_token'),
  (with_attention(LLAMA, soft_cap=50.0), 'model.pattern[0].attention.soft_cap'),
  (with_attention(LLAMA, scale=0.1), 'model.pattern[0].attention.scale'),
  (with_attention(LLAMA, window=8, bias=True), 'model.pattern[0].attention.bias'),
  (presets.llama(30, 2, 4, head_dim=8), 'model.d_model'),
  (dataclasses.replace(GPT2, norm=arch.RMSNorm()), 'model.norm'),
  (dataclasses.replace(GPT2, positions=arch.SinusoidalPositions()), 'model.positions'),
  (with_attention(GPT2, num_kv_heads=2), 'model.pattern[0].attention.num_kv_heads'),
  (with_attention(GPT2, window=8), 'model.pattern[0].attention.window'),
  (dataclasses.replace(GPT2, pattern=(*GPT2.pattern, dataclasses.replace(GPT2.pattern[0], norm=arch.LayerNorm(1e-6)))),
   'model.pattern[1].norm.eps'),
  (with_feed_forward(MIXTRAL, capacity_factor=1.0), 'model.pattern[0].feed_forward.capacity_factor'),
  (with_feed_forward(MIXTRAL, shared=arch.GLU(64)), 'model.pattern[0].feed_forward.shared'),
  (with_attention(GEMMA2, scale=0.3), 'model.pattern[0].attention.scale'),
))
def test_what_no_family_has_is_not_exported(config, names, tmp_path):
  with pytest.raises(ConfigError, match=f'^{re.escape(names)} = '):
    hf.save_pretrained(tmp_path / 'new', config, {})
  assert not list(tmp_path.iterdir())
