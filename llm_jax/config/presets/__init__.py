"""Families of decoders, one file each, as their papers' tables print them.

A family is a function of its sizes, `presets.llama(d_model=512, num_layers=8, num_heads=8)`; a printed row is one with
the sizes filled in, `presets.llama3_8b()`, which any argument changes: `presets.llama3_8b(num_layers=2)`.
"""
from functools import partial

from llm_jax.config.presets.deepseek import deepseek, deepseek_v3
from llm_jax.config.presets.gemma import gemma, gemma_2b, gemma_7b
from llm_jax.config.presets.gemma2 import gemma2, gemma2_2b, gemma2_9b, gemma2_27b
from llm_jax.config.presets.gemma3 import gemma3, gemma3_1b, gemma3_4b, gemma3_12b, gemma3_27b
from llm_jax.config.presets.gpt1 import gpt1, gpt1_117m
from llm_jax.config.presets.gpt2 import gpt2, gpt2_1_5b, gpt2_124m, gpt2_355m, gpt2_774m
from llm_jax.config.presets.gpt3 import (
  gpt3,
  gpt3_1_3b,
  gpt3_2_7b,
  gpt3_6_7b,
  gpt3_13b,
  gpt3_125m,
  gpt3_175b,
  gpt3_350m,
  gpt3_760m,
)
from llm_jax.config.presets.gpt_neox import (
  gpt_neox,
  gpt_neox_20b,
  pythia_1_4b,
  pythia_1b,
  pythia_2_8b,
  pythia_6_9b,
  pythia_12b,
  pythia_70m,
  pythia_160m,
  pythia_410m,
)
from llm_jax.config.presets.gpt_oss import gpt_oss, gpt_oss_20b, gpt_oss_120b
from llm_jax.config.presets.llama import (
  code_llama_7b,
  code_llama_13b,
  code_llama_34b,
  code_llama_70b,
  llama,
  llama2_7b,
  llama2_13b,
  llama2_34b,
  llama2_70b,
  llama3_1_8b,
  llama3_1_70b,
  llama3_1_405b,
  llama3_2_1b,
  llama3_2_3b,
  llama3_3_70b,
  llama3_8b,
  llama3_70b,
  llama_7b,
  llama_13b,
  llama_33b,
  llama_65b,
)
from llm_jax.config.presets.mistral import mistral, mistral_7b
from llm_jax.config.presets.mixtral import mixtral, mixtral_8x7b, mixtral_8x22b
from llm_jax.config.presets.olmo import olmo2, olmo2_1b, olmo2_7b, olmo2_13b, olmo2_32b, olmo3, olmo3_7b, olmo3_32b
from llm_jax.config.presets.phi3 import (
  phi3,
  phi3_5_mini,
  phi3_medium_4k,
  phi3_mini_4k,
  phi3_mini_128k,
  phi4,
  phi4_mini,
)
from llm_jax.config.presets.qwen import (
  qwen2,
  qwen2_5_0_5b,
  qwen2_5_1_5b,
  qwen2_5_3b,
  qwen2_5_7b,
  qwen2_5_14b,
  qwen2_5_32b,
  qwen2_5_72b,
  qwen3,
  qwen3_0_6b,
  qwen3_1_7b,
  qwen3_4b,
  qwen3_8b,
  qwen3_14b,
  qwen3_30b_a3b,
  qwen3_32b,
  qwen3_235b_a22b,
  qwen3_moe,
)
from llm_jax.config.presets.smollm3 import smollm3, smollm3_3b

__all__ = [
  'gpt1', 'gpt1_117m', 'gpt2', 'gpt2_124m', 'gpt2_355m', 'gpt2_774m', 'gpt2_1_5b',
  'gpt3', 'gpt3_125m', 'gpt3_350m', 'gpt3_760m', 'gpt3_1_3b', 'gpt3_2_7b', 'gpt3_6_7b', 'gpt3_13b', 'gpt3_175b',
  'gpt_neox', 'gpt_neox_20b',
  'llama', 'llama_7b', 'llama_13b', 'llama_33b', 'llama_65b', 'llama2_7b', 'llama2_13b', 'llama2_34b', 'llama2_70b',
  'code_llama_7b', 'code_llama_13b', 'code_llama_34b', 'code_llama_70b',
  'pythia_70m', 'pythia_160m', 'pythia_410m', 'pythia_1b', 'pythia_1_4b', 'pythia_2_8b', 'pythia_6_9b', 'pythia_12b',
  'llama3_8b', 'llama3_70b', 'llama3_1_8b', 'llama3_1_70b', 'llama3_1_405b', 'llama3_2_1b', 'llama3_2_3b',
  'llama3_3_70b',
  'mistral', 'mistral_7b', 'mixtral', 'mixtral_8x7b', 'mixtral_8x22b',
  'gemma', 'gemma_2b', 'gemma_7b', 'gemma2', 'gemma2_2b', 'gemma2_9b', 'gemma2_27b',
  'phi3', 'phi3_mini_4k', 'phi3_mini_128k', 'phi3_medium_4k', 'phi3_5_mini', 'phi4', 'phi4_mini',
  'deepseek', 'deepseek_v3',
  'qwen2', 'qwen2_5_0_5b', 'qwen2_5_1_5b', 'qwen2_5_3b', 'qwen2_5_7b', 'qwen2_5_14b', 'qwen2_5_32b', 'qwen2_5_72b',
  'olmo2', 'olmo2_1b', 'olmo2_7b', 'olmo2_13b', 'olmo2_32b',
  'gemma3', 'gemma3_1b', 'gemma3_4b', 'gemma3_12b', 'gemma3_27b',
  'qwen3', 'qwen3_0_6b', 'qwen3_1_7b', 'qwen3_4b', 'qwen3_8b', 'qwen3_14b', 'qwen3_32b',
  'qwen3_moe', 'qwen3_30b_a3b', 'qwen3_235b_a22b',
  'smollm3', 'smollm3_3b', 'gpt_oss', 'gpt_oss_20b', 'gpt_oss_120b', 'olmo3', 'olmo3_7b', 'olmo3_32b',
]

# The printed rows, families in the order of their papers.
NAMES = tuple(name for name in __all__ if isinstance(globals()[name], partial))
