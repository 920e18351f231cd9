"""Every printed size has the parameters that its paper prints, and that others make of the released configuration."""
import dataclasses
import json
import math

import pytest
import torch
import transformers

from llm_jax.config import presets, schema
from llm_jax.config.experiment import Bytes, Constant, StandardLibrary, experiment, stage
from llm_jax.config.model.architecture import (
  LearnedPositions,
  Llama3Scaling,
  MixtureOfExperts,
  NormalInit,
  PostNormBlock,
  SandwichBlock,
  SoftmaxRouter,
  YaRNScaling,
)
from llm_jax.config.model.count import blocks, count_active_parameters, count_multi_token, count_parameters
from llm_jax.config.presets.phi3_factors import PHI4_MINI_LONG
from llm_jax.hf import config_from_hf

# Counts as printed: GPT-3's in table D.1, the rest in the tables that the presets cite, or, for Llama 3.2, Mixtral
# 8x22B, Qwen, Phi-3.5, Phi-4-mini and SmolLM3, on their model cards. GPT-2's are those that its authors' code corrects
# the paper's to.
PRINTED = {
  'gpt1_117m': '117M', 'gpt2_124m': '124M', 'gpt2_355m': '355M', 'gpt2_774m': '774M', 'gpt2_1_5b': '1558M',
  'gpt3_125m': '125M', 'gpt3_350m': '356M', 'gpt3_760m': '760M', 'gpt3_1_3b': '1320M', 'gpt3_2_7b': '2650M',
  'gpt3_6_7b': '6660M', 'gpt3_13b': '12850M', 'gpt3_175b': '174600M',
  'gpt_neox_20b': '20B',
  'llama_7b': '6.7B', 'llama_13b': '13.0B', 'llama_33b': '32.5B', 'llama_65b': '65.2B',
  'llama2_7b': '7B', 'llama2_13b': '13B', 'llama2_34b': '34B', 'llama2_70b': '70B',
  'code_llama_7b': '7B', 'code_llama_13b': '13B', 'code_llama_34b': '34B', 'code_llama_70b': '70B',
  'llama3_8b': '8B', 'llama3_70b': '70B', 'llama3_1_8b': '8B', 'llama3_1_70b': '70B', 'llama3_1_405b': '405B',
  'llama3_2_1b': '1.23B', 'llama3_2_3b': '3.21B', 'llama3_3_70b': '70B',
  'qwen2_5_0_5b': '0.49B', 'qwen2_5_1_5b': '1.54B', 'qwen2_5_3b': '3.09B', 'qwen2_5_7b': '7.61B',
  'qwen2_5_14b': '14.7B', 'qwen2_5_32b': '32B', 'qwen2_5_72b': '72.7B',
  'qwen3_0_6b': '0.6B', 'qwen3_1_7b': '1.7B', 'qwen3_4b': '4.0B', 'qwen3_8b': '8.2B', 'qwen3_14b': '14.8B',
  'qwen3_32b': '32.8B',
  'olmo2_1b': '1B', 'olmo2_7b': '7B', 'olmo2_13b': '13B', 'olmo2_32b': '32B', 'olmo3_7b': '7B', 'olmo3_32b': '32B',
  'qwen3_30b_a3b': '30.5B', 'qwen3_235b_a22b': '235B', 'smollm3_3b': '3B',
  'phi3_mini_4k': '3.8B', 'phi3_mini_128k': '3.8B', 'phi3_medium_4k': '14B', 'phi3_5_mini': '3.8B', 'phi4': '14B',
  'phi4_mini': '3.8B',
  'gpt_oss_20b': '20.91B', 'gpt_oss_120b': '116.83B',
  'mistral_7b': '7B', 'mixtral_8x7b': '46.7B', 'mixtral_8x22b': '141B', 'deepseek_v3': '671B',
}
# Printed with the further digits cut, not rounded.
CUT = ('gpt_neox_20b', 'llama_65b', 'llama3_1_405b', 'llama3_2_1b', 'qwen2_5_7b', 'qwen2_5_14b', 'qwen2_5_32b',
       'olmo2_13b', 'qwen3_30b_a3b', 'phi4')

# Gemma's papers print embeddings and the rest apart, with a vocabulary of 256,128; the checkpoints hold 256,000.
GEMMA = {
  'gemma_2b': (524_550_144, 1_981_884_416), 'gemma_7b': (786_825_216, 7_751_248_896),
  'gemma2_2b': (590_118_912, 2_024_517_888), 'gemma2_9b': (917_962_752, 8_324_201_984),
  'gemma2_27b': (1_180_237_824, 26_047_480_320),
}

# Gemma 3's paper prints its embeddings rounded otherwise; the rest agrees.
GEMMA3 = {'gemma3_1b': '698M', 'gemma3_4b': '3209M', 'gemma3_12b': '10759M', 'gemma3_27b': '25600M'}

# Pythia's paper prints the parameters without the embedding and the head to the last one; its model cards all of them.
PYTHIA = {
  'pythia_70m': (18_915_328, 70_426_624), 'pythia_160m': (85_056_000, 162_322_944),
  'pythia_410m': (302_311_424, 405_334_016), 'pythia_1b': (805_736_448, 1_011_781_632),
  'pythia_1_4b': (1_208_602_624, 1_414_647_808), 'pythia_2_8b': (2_517_652_480, 2_775_208_960),
  'pythia_6_9b': (6_444_163_072, 6_857_302_016), 'pythia_12b': (11_327_027_200, 11_846_072_320),
}

ACTIVE = {'mixtral_8x7b': '12.9B', 'mixtral_8x22b': '39B', 'qwen3_30b_a3b': '3.3B', 'qwen3_235b_a22b': '22B'}
ACTIVE_BUT_THE_EMBEDDING = {'deepseek_v3': '37B', 'gpt_oss_20b': '3.61B', 'gpt_oss_120b': '5.13B'}


def agrees(count: int, printed: str, cut: bool = False) -> bool:
  """The count rounds (or is cut) to the printed number at its last digit that is not a zero before the point."""
  number, unit = printed[:-1], {'M': 10**6, 'B': 10**9}[printed[-1]]
  zeros = len(number) - len(number.rstrip('0'))
  step = 10 ** (-len(number.split('.')[1]) if '.' in number else zeros)
  over = count / unit - float(number)
  return 0 <= over < step if cut else abs(over) <= step / 2


def test_every_printed_size_is_in_the_tables():
  assert set(presets.NAMES) == set(PRINTED) | set(GEMMA) | set(GEMMA3) | set(PYTHIA)


@pytest.mark.parametrize('name', PRINTED)
def test_counts_are_the_papers(name):
  count = count_parameters(getattr(presets, name)())
  assert agrees(count, PRINTED[name], cut=name in CUT), f'{count:,}'


@pytest.mark.parametrize('name', GEMMA)
def test_gemma_counts_are_the_papers(name):
  embedding, rest = GEMMA[name]
  printed = getattr(presets, name)(vocab_size=256_128)
  assert (printed.vocab_size * printed.d_model, count_parameters(printed)) == (embedding, embedding + rest)


@pytest.mark.parametrize('name', GEMMA3)
def test_gemma3_counts_are_the_papers(name):
  model = getattr(presets, name)()
  assert agrees(count_parameters(model) - model.vocab_size * model.d_model, GEMMA3[name])


@pytest.mark.parametrize('name', PYTHIA)
def test_pythia_counts_are_the_papers(name):
  model = getattr(presets, name)()
  assert PYTHIA[name] == (count_parameters(model) - 2 * model.vocab_size * model.d_model, count_parameters(model))


def test_gpt_neox_has_the_parameters_of_its_model_card():
  assert count_parameters(presets.gpt_neox_20b()) == 20_554_567_680


@pytest.mark.parametrize('name', presets.NAMES)
def test_active_parameters_are_the_papers(name):
  architecture = getattr(presets, name)()
  active = count_active_parameters(architecture)
  if name in ACTIVE_BUT_THE_EMBEDDING:
    assert agrees(active - architecture.vocab_size * architecture.d_model, ACTIVE_BUT_THE_EMBEDDING[name])
  elif name in ACTIVE:
    assert agrees(active, ACTIVE[name], cut=name in CUT)
  else:
    assert active == count_parameters(architecture)


def test_deepseek_further_token():
  """One block; the README of its weights says 11.5B, which leaves out the [2 D, D] projection."""
  assert agrees(count_multi_token(presets.deepseek_v3()) - 2 * 7_168 ** 2, '11.5B')
  assert count_multi_token(presets.mixtral_8x7b()) == 0


# Released configurations, as far as they differ from the defaults of `transformers`.
LLAMA = {'model_type': 'llama'}
LLAMA_70B = {**LLAMA, 'hidden_size': 8_192, 'intermediate_size': 28_672, 'num_hidden_layers': 80,
             'num_attention_heads': 64, 'num_key_value_heads': 8}
PHI3_LONG = {'model_type': 'phi3', 'max_position_embeddings': 131_072, 'original_max_position_embeddings': 4_096}
QWEN2 = {'model_type': 'qwen2'}
QWEN3 = {'model_type': 'qwen3', 'num_key_value_heads': 8}
QWEN3_MOE = {'model_type': 'qwen3_moe', 'head_dim': 128, 'norm_topk_prob': True}
GEMMA3_TEXT = {'model_type': 'gemma3_text', 'vocab_size': 262_144}
NEOX = {'model_type': 'gpt_neox', 'vocab_size': 50_304}
PYTHIA_1B = {**NEOX, 'hidden_size': 2_048, 'intermediate_size': 8_192, 'num_hidden_layers': 16,
             'num_attention_heads': 8}
RELEASED = {
  'gpt1_117m': {'model_type': 'openai-gpt'},
  'gpt2_124m': {'model_type': 'gpt2'},
  'gpt2_355m': {'model_type': 'gpt2', 'n_embd': 1_024, 'n_layer': 24, 'n_head': 16},
  'gpt2_774m': {'model_type': 'gpt2', 'n_embd': 1_280, 'n_layer': 36, 'n_head': 20},
  'gpt2_1_5b': {'model_type': 'gpt2', 'n_embd': 1_600, 'n_layer': 48, 'n_head': 25},
  'gpt_neox_20b': {'model_type': 'gpt_neox'},
  'pythia_70m': {**NEOX, 'hidden_size': 512, 'intermediate_size': 2_048, 'num_hidden_layers': 6,
                 'num_attention_heads': 8},
  'pythia_160m': {**NEOX, 'hidden_size': 768, 'intermediate_size': 3_072, 'num_hidden_layers': 12,
                  'num_attention_heads': 12},
  'pythia_410m': {**NEOX, 'hidden_size': 1_024, 'intermediate_size': 4_096, 'num_hidden_layers': 24,
                  'num_attention_heads': 16},
  'pythia_1b': PYTHIA_1B,
  'pythia_1_4b': {**PYTHIA_1B, 'num_hidden_layers': 24, 'num_attention_heads': 16},
  'pythia_2_8b': {**NEOX, 'hidden_size': 2_560, 'intermediate_size': 10_240, 'num_hidden_layers': 32,
                  'num_attention_heads': 32},
  'pythia_6_9b': {**NEOX, 'vocab_size': 50_432, 'hidden_size': 4_096, 'intermediate_size': 16_384,
                  'num_hidden_layers': 32, 'num_attention_heads': 32},
  'pythia_12b': {**NEOX, 'vocab_size': 50_688, 'hidden_size': 5_120, 'intermediate_size': 20_480,
                 'num_hidden_layers': 36, 'num_attention_heads': 40},
  'llama_7b': LLAMA,
  'llama_13b': {**LLAMA, 'hidden_size': 5_120, 'intermediate_size': 13_824, 'num_hidden_layers': 40,
                'num_attention_heads': 40},
  'llama_33b': {**LLAMA, 'hidden_size': 6_656, 'intermediate_size': 17_920, 'num_hidden_layers': 60,
                'num_attention_heads': 52},
  'llama_65b': {**LLAMA, 'hidden_size': 8_192, 'intermediate_size': 22_016, 'num_hidden_layers': 80,
                'num_attention_heads': 64},
  'llama2_70b': LLAMA_70B,
  'code_llama_7b': {**LLAMA, 'vocab_size': 32_016},
  'code_llama_34b': {**LLAMA, 'hidden_size': 8_192, 'intermediate_size': 22_016, 'num_hidden_layers': 48,
                     'num_attention_heads': 64, 'num_key_value_heads': 8},
  'llama3_8b': {**LLAMA, 'vocab_size': 128_256, 'intermediate_size': 14_336, 'num_key_value_heads': 8},
  'llama3_1_70b': {**LLAMA_70B, 'vocab_size': 128_256},
  'llama3_1_405b': {**LLAMA, 'vocab_size': 128_256, 'hidden_size': 16_384, 'intermediate_size': 53_248,
                    'num_hidden_layers': 126, 'num_attention_heads': 128, 'num_key_value_heads': 8},
  'llama3_2_1b': {**LLAMA, 'vocab_size': 128_256, 'hidden_size': 2_048, 'intermediate_size': 8_192, 'head_dim': 64,
                  'num_hidden_layers': 16, 'num_key_value_heads': 8, 'tie_word_embeddings': True},
  'llama3_2_3b': {**LLAMA, 'vocab_size': 128_256, 'hidden_size': 3_072, 'intermediate_size': 8_192, 'head_dim': 128,
                  'num_hidden_layers': 28, 'num_attention_heads': 24, 'num_key_value_heads': 8,
                  'tie_word_embeddings': True},
  'mistral_7b': {'model_type': 'mistral'},
  'mixtral_8x7b': {'model_type': 'mixtral'},
  'mixtral_8x22b': {'model_type': 'mixtral', 'hidden_size': 6_144, 'num_hidden_layers': 56, 'num_attention_heads': 48,
                    'intermediate_size': 16_384},
  'gemma_2b': {'model_type': 'gemma', 'hidden_size': 2_048, 'intermediate_size': 16_384, 'num_hidden_layers': 18,
               'num_attention_heads': 8, 'num_key_value_heads': 1},
  'gemma_7b': {'model_type': 'gemma'},
  'gemma2_2b': {'model_type': 'gemma2'},
  'gemma2_9b': {'model_type': 'gemma2', 'hidden_size': 3_584, 'intermediate_size': 14_336, 'num_hidden_layers': 42,
                'num_attention_heads': 16, 'num_key_value_heads': 8},
  'gemma2_27b': {'model_type': 'gemma2', 'hidden_size': 4_608, 'intermediate_size': 36_864, 'num_hidden_layers': 46,
                 'num_attention_heads': 32, 'num_key_value_heads': 16, 'head_dim': 128},
  'deepseek_v3': {'model_type': 'deepseek_v3'},
  'phi3_mini_4k': {'model_type': 'phi3'},
  'phi3_mini_128k': PHI3_LONG,
  'phi3_5_mini': PHI3_LONG,
  'phi4': {'model_type': 'phi3', 'vocab_size': 100_352, 'hidden_size': 5_120, 'intermediate_size': 17_920,
           'num_hidden_layers': 40, 'num_attention_heads': 40, 'num_key_value_heads': 10, 'pad_token_id': 0},
  'phi4_mini': {**PHI3_LONG, 'vocab_size': 200_064, 'num_attention_heads': 24, 'num_key_value_heads': 8,
                'partial_rotary_factor': 0.75, 'tie_word_embeddings': True, 'pad_token_id': 0},
  'qwen2_5_0_5b': {**QWEN2, 'hidden_size': 896, 'intermediate_size': 4_864, 'num_hidden_layers': 24,
                   'num_attention_heads': 14, 'num_key_value_heads': 2, 'tie_word_embeddings': True},
  'qwen2_5_7b': {**QWEN2, 'vocab_size': 152_064, 'hidden_size': 3_584, 'intermediate_size': 18_944,
                 'num_hidden_layers': 28, 'num_attention_heads': 28, 'num_key_value_heads': 4},
  'qwen2_5_72b': {**QWEN2, 'vocab_size': 152_064, 'hidden_size': 8_192, 'intermediate_size': 29_568,
                  'num_hidden_layers': 80, 'num_attention_heads': 64, 'num_key_value_heads': 8},
  'qwen3_0_6b': {**QWEN3, 'hidden_size': 1_024, 'intermediate_size': 3_072, 'num_hidden_layers': 28,
                 'num_attention_heads': 16, 'tie_word_embeddings': True},
  'qwen3_8b': {**QWEN3, 'intermediate_size': 12_288, 'num_hidden_layers': 36},
  'qwen3_32b': {**QWEN3, 'hidden_size': 5_120, 'intermediate_size': 25_600, 'num_hidden_layers': 64,
                'num_attention_heads': 64},
  'qwen3_30b_a3b': {**QWEN3_MOE, 'num_hidden_layers': 48},
  'qwen3_235b_a22b': {**QWEN3_MOE, 'hidden_size': 4_096, 'intermediate_size': 12_288, 'moe_intermediate_size': 1_536,
                      'num_hidden_layers': 94, 'num_attention_heads': 64},
  'olmo2_7b': {'model_type': 'olmo2', 'vocab_size': 100_352},
  'olmo2_32b': {'model_type': 'olmo2', 'vocab_size': 100_352, 'hidden_size': 5_120, 'intermediate_size': 27_648,
                'num_hidden_layers': 64, 'num_attention_heads': 40, 'num_key_value_heads': 8},
  'olmo3_7b': {'model_type': 'olmo3', 'vocab_size': 100_278},
  'gemma3_1b': {**GEMMA3_TEXT, 'hidden_size': 1_152, 'intermediate_size': 6_912, 'num_attention_heads': 4,
                'num_key_value_heads': 1},
  'gemma3_4b': {**GEMMA3_TEXT, 'hidden_size': 2_560, 'intermediate_size': 10_240, 'num_hidden_layers': 34},
  'gemma3_27b': {**GEMMA3_TEXT, 'hidden_size': 5_376, 'intermediate_size': 21_504, 'num_hidden_layers': 62,
                 'num_attention_heads': 32, 'num_key_value_heads': 16, 'head_dim': 128},
  'smollm3_3b': {'model_type': 'smollm3'},
  'gpt_oss_20b': {'model_type': 'gpt_oss', 'num_hidden_layers': 24, 'num_local_experts': 32},
  'gpt_oss_120b': {'model_type': 'gpt_oss'},
}


@pytest.mark.parametrize('name', RELEASED)
def test_counts_are_those_of_transformers(name):
  """On the meta device: nothing is allocated. The balance bias of DeepSeek-V3 is a buffer there."""
  with torch.device('meta'):
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**RELEASED[name]))
  biases = sum(buffer.numel() for path, buffer in model.named_buffers() if path.endswith('e_score_correction_bias'))
  assert count_parameters(getattr(presets, name)()) == model.num_parameters() + biases


# What else their files say. The 9B and 27B of Gemma 2 state their window twice, the first LLaMA its context otherwise.
ROPE3 = {'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0, 'original_max_position_embeddings': 8_192,
         'rope_type': 'llama3'}
YARN = {'type': 'yarn', 'factor': 40, 'original_max_position_embeddings': 4_096, 'beta_fast': 32, 'beta_slow': 1,
        'mscale': 1.0, 'mscale_all_dim': 1.0}
GEMMA2 = {'query_pre_attn_scalar': 256, 'sliding_window': 4_096, 'sliding_window_size': 4_096, 'rms_norm_eps': 1e-6,
          'max_position_embeddings': 8_192, 'hidden_act': 'gelu_pytorch_tanh', 'cache_implementation': 'hybrid'}
ROTARY_QUARTER = {'rotary_pct': 0.25, 'rotary_emb_base': 10_000, 'max_position_embeddings': 2_048,
                  'layer_norm_eps': 1e-5, 'use_parallel_residual': True, 'tie_word_embeddings': False}
PYTHIA_STATED = {**ROTARY_QUARTER, 'hidden_act': 'gelu'}
QWEN_1E6 = {'rope_theta': 1_000_000.0, 'use_sliding_window': False, 'sliding_window': None}
GPT_OSS = {
  'rope_theta': 150_000, 'max_position_embeddings': 131_072, 'initial_context_length': 4_096, 'sliding_window': 128,
  'rope_scaling': {'beta_fast': 32.0, 'beta_slow': 1.0, 'factor': 32.0, 'original_max_position_embeddings': 4_096,
                   'rope_type': 'yarn', 'truncate': False},
  'swiglu_limit': 7.0, 'router_aux_loss_coef': 0.9, 'experts_per_token': 4, 'num_experts_per_tok': 4,
  'rms_norm_eps': 1e-5, 'attention_bias': True, 'quantization_config': {'quant_method': 'mxfp4'}}
STATED = {
  'gpt1_117m': {'afn': 'gelu', 'resid_pdrop': 0.1, 'n_ctx': 512},
  'gpt2_1_5b': {'resid_pdrop': 0.0, 'embd_pdrop': 0.0, 'attn_pdrop': 0.0},
  'gpt_neox_20b': {**ROTARY_QUARTER, 'hidden_act': 'gelu_fast', 'attention_probs_dropout_prob': 0,
                   'hidden_dropout_prob': 0},
  **{name: PYTHIA_STATED for name in PYTHIA},
  'llama_7b': {'rms_norm_eps': 1e-6, 'max_position_embeddings': 2_048, 'max_sequence_length': 2_048},
  'llama_65b': {'rms_norm_eps': 1e-5, 'max_position_embeddings': 2_048, 'max_sequence_length': 2_048},
  'llama2_70b': {'rms_norm_eps': 1e-5, 'max_position_embeddings': 4_096},
  'code_llama_7b': {'rms_norm_eps': 1e-5, 'max_position_embeddings': 16_384, 'rope_theta': 1_000_000},
  'llama3_8b': {'rms_norm_eps': 1e-5, 'max_position_embeddings': 8_192, 'rope_theta': 500_000.0},
  'llama3_1_405b': {'rms_norm_eps': 1e-5, 'max_position_embeddings': 131_072, 'rope_theta': 500_000.0,
                    'rope_scaling': ROPE3},
  'llama3_2_1b': {'rms_norm_eps': 1e-5, 'max_position_embeddings': 131_072, 'rope_theta': 500_000.0,
                  'rope_scaling': ROPE3 | {'factor': 32.0}},
  'mistral_7b': {'rms_norm_eps': 1e-5, 'max_position_embeddings': 32_768, 'sliding_window': 4_096},
  'mixtral_8x7b': {'rms_norm_eps': 1e-5, 'max_position_embeddings': 32_768, 'rope_theta': 1e6,
                   'router_aux_loss_coef': 0.02},
  'mixtral_8x22b': {'rms_norm_eps': 1e-5, 'max_position_embeddings': 65_536, 'rope_theta': 1e6,
                    'router_aux_loss_coef': 0.001, 'router_jitter_noise': 0.0},
  'gemma_7b': {'rms_norm_eps': 1e-6, 'max_position_embeddings': 8_192, 'hidden_act': 'gelu'},
  'gemma2_2b': GEMMA2, 'gemma2_9b': GEMMA2, 'gemma2_27b': GEMMA2 | {'query_pre_attn_scalar': 144},
  'deepseek_v3': {'rms_norm_eps': 1e-6, 'max_position_embeddings': 163_840, 'rope_theta': 10_000,
                  'rope_scaling': YARN, 'num_nextn_predict_layers': 1, 'topk_method': 'noaux_tc',
                  'scoring_func': 'sigmoid', 'moe_layer_freq': 1},
  'phi3_mini_4k': {'sliding_window': 2_047, 'rope_theta': 10_000.0, 'max_position_embeddings': 4_096},
  'phi4': {'sliding_window': None, 'rope_theta': 250_000, 'max_position_embeddings': 16_384,
           'original_max_position_embeddings': 16_384, 'rope_scaling': None},
  'phi4_mini': {'sliding_window': 262_144, 'rope_theta': 10_000.0, 'rope_scaling': {
    'type': 'longrope', 'short_factor': [1.0] * 48, 'long_factor': list(PHI4_MINI_LONG)}},
  'qwen2_5_0_5b': QWEN_1E6 | {'rms_norm_eps': 1e-6, 'max_position_embeddings': 32_768, 'max_window_layers': 24},
  'qwen2_5_7b': QWEN_1E6 | {'rms_norm_eps': 1e-6, 'max_position_embeddings': 131_072, 'use_mrope': False},
  'qwen2_5_72b': QWEN_1E6 | {'rms_norm_eps': 1e-5, 'max_position_embeddings': 131_072, 'max_window_layers': 80},
  'qwen3_0_6b': QWEN_1E6 | {'head_dim': 128, 'max_position_embeddings': 40_960, 'max_window_layers': 28},
  'qwen3_32b': QWEN_1E6 | {'head_dim': 128, 'max_position_embeddings': 40_960, 'rope_scaling': None},
  'qwen3_30b_a3b': QWEN_1E6 | {'max_position_embeddings': 40_960, 'max_window_layers': 48, 'mlp_only_layers': [],
                               'decoder_sparse_step': 1, 'router_aux_loss_coef': 0.001},
  'qwen3_235b_a22b': QWEN_1E6 | {'max_position_embeddings': 40_960, 'max_window_layers': 94, 'mlp_only_layers': [],
                                 'output_router_logits': False},
  'olmo2_7b': {'rms_norm_eps': 1e-6, 'rope_theta': 500_000, 'max_position_embeddings': 4_096},
  'gemma3_1b': {'sliding_window': 512, 'sliding_window_pattern': 6, 'rope_theta': 1_000_000, 'rope_scaling': None,
                'rope_local_base_freq': 10_000, 'max_position_embeddings': 32_768, 'cache_implementation': 'hybrid',
                'attn_logit_softcapping': None, 'final_logit_softcapping': None, 'query_pre_attn_scalar': 256},
  'gemma3_27b': {'sliding_window': 1_024, 'rope_scaling': {'factor': 8.0, 'rope_type': 'linear'},
                 'query_pre_attn_scalar': 168, 'max_position_embeddings': 131_072},
  **{f'gpt_oss_{size}': GPT_OSS | {'layer_types': ['sliding_attention', 'full_attention'] * (layers // 2)}
     for size, layers in (('20b', 24), ('120b', 36))},
  'smollm3_3b': {'rope_theta': 5_000_000.0, 'max_position_embeddings': 65_536, 'no_rope_layer_interval': 4,
                 'no_rope_layers': [1, 1, 1, 0] * 9, 'max_window_layers': 28, 'pretraining_tp': 2,
                 'layer_types': ['full_attention'] * 36},
}


@pytest.mark.parametrize('name', STATED)
def test_released_files_give_the_presets(name):
  """But for the initialisation, where the papers differ from the files (0.006 in DeepSeek-V3's), and for what training
  adds for the balance of experts: an imported model is trained on as with transformers."""
  def plain(block):
    if not isinstance(block.feed_forward, MixtureOfExperts):
      return block
    match block.feed_forward.router:
      case SoftmaxRouter() as router:
        router = dataclasses.replace(router, layers_together=False, in_training=True, balance_over='microbatch')
      case router:
        router = dataclasses.replace(router, bias_rate=0.0, sequence_balance_weight=0.0)
    return dataclasses.replace(block, feed_forward=dataclasses.replace(block.feed_forward, router=router))

  def without_training(model):
    groups = {group: tuple(map(plain, getattr(model, group))) for group in ('prefix', 'pattern', 'multi_token')}
    return dataclasses.replace(model, init=NormalInit(), **groups)

  read = config_from_hf(RELEASED[name] | STATED[name])
  assert without_training(read) == without_training(getattr(presets, name)())


@pytest.mark.parametrize('name', presets.NAMES)
def test_through_the_door_and_back(name):
  """As an experiment, and as the JSON of a run's folder."""
  model = getattr(presets, name)()
  run = schema.from_config_dict(experiment(tokenizer=Bytes(), model=model, stages=(
    stage('a', StandardLibrary(), steps=1, seq_len=8, batch_size=1, learning_rate=Constant(0.0)),)))
  assert run.model == model and schema.from_json(json.loads(json.dumps(schema.to_json(run)))) == run


@pytest.mark.parametrize('name', presets.NAMES)
def test_arguments_can_be_changed(name):
  changed = getattr(presets, name)(vocab_size=300, dropout=0.25)
  assert (changed.vocab_size, changed.dropout) == (300, 0.25)


# ---------------------------------------------------------------------------------------------- what families are
def test_misprints_of_gpt3():
  """The 13B row prints width 5,140 for 40 heads of 128, the XL row 24 heads of 128 for width 2,048."""
  heads = {'125m': (12, 64), '350m': (16, 64), '760m': (16, 96), '1_3b': (16, 128), '2_7b': (32, 80),
           '6_7b': (32, 128), '13b': (40, 128), '175b': (96, 128)}
  for name, (count, size) in heads.items():
    architecture = getattr(presets, f'gpt3_{name}')()
    attention = architecture.pattern[0].attention
    assert (attention.num_heads, attention.head_size(architecture.d_model)) == (count, size)
    assert architecture.d_model == count * size


def test_alternating_layers():
  windows = [block.attention.window for block in blocks(presets.gpt3_125m())]
  assert windows == [None, 256] * 6
  windows = [block.attention.window for block in blocks(presets.gemma2_2b())]
  assert windows == [4_096, None] * 13


def test_layers_of_gemma3():
  """The first that sees all tokens is the sixth, whether the layers are a multiple of six or not."""
  for name in ('gemma3_1b', 'gemma3_4b', 'gemma3_12b', 'gemma3_27b'):
    layers = blocks(getattr(presets, name)())
    assert [i for i, block in enumerate(layers) if block.attention.window is None] == list(range(5, len(layers), 6))


def test_norms_stand_where_the_papers_say():
  gpt1, gpt2, gemma2 = presets.gpt1_117m(), presets.gpt2_124m(), presets.gemma2_2b()
  assert isinstance(gpt1.pattern[0], PostNormBlock) and gpt1.norm is None and gpt2.norm is not None
  assert all(isinstance(block, SandwichBlock) for block in gemma2.pattern)


def test_positions():
  assert presets.gpt1_117m().positions == LearnedPositions(512)
  assert presets.gpt3_175b().max_length == 2_048
  assert presets.code_llama_34b().positions.theta == 1e6
  assert presets.llama3_8b().positions.scaling is None
  assert presets.llama3_1_405b().positions.scaling == Llama3Scaling(8.0, 1.0, 4.0, 8_192)
  assert presets.llama3_2_3b().positions.scaling == Llama3Scaling(32.0, 1.0, 4.0, 8_192)


def test_scores_of_gemma2_and_deepseek():
  scales = [getattr(presets, f'gemma2_{size}')().pattern[0].attention.scale for size in ('2b', '9b', '27b')]
  assert scales == [None, None, 1 / 12]  # 1 / sqrt(256) where None, and 1 / sqrt(4608 / 32)
  released, base = presets.deepseek_v3(), presets.deepseek_v3(scaling=None, max_length=4_096)
  # `mscale` and `mscale_all_dim` are both 1: the rotation keeps its length, the scores take both factors.
  assert released.positions.scaling == YaRNScaling(40.0, 4_096, attention_factor=1.0)
  assert math.isclose(released.pattern[0].attention.scale, (0.1 * math.log(40) + 1) ** 2 / math.sqrt(192))
  assert base.pattern[0].attention.scale is None and base.positions.scaling is None
  assert len(released.prefix) == 3 and len(blocks(released)) == 61 and len(released.multi_token) == 1
