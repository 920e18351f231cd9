"""The families of `transformers` that are read and written: the weight table and the configuration of each in one
file."""
from llm_jax.config.errors import require
from llm_jax.config.model.architecture import Architecture
from llm_jax.hf.families.deepseek import DEEPSEEK_V3
from llm_jax.hf.families.gemma import GEMMA, GEMMA2, GEMMA3
from llm_jax.hf.families.gpt import GPT2, OPENAI_GPT
from llm_jax.hf.families.gpt_neox import GPT_NEOX
from llm_jax.hf.families.gpt_oss import GPT_OSS
from llm_jax.hf.families.llama import LLAMA, MISTRAL
from llm_jax.hf.families.mixtral import MIXTRAL
from llm_jax.hf.families.olmo import OLMO2, OLMO3
from llm_jax.hf.families.phi import PHI3
from llm_jax.hf.families.qwen import QWEN2, QWEN3, QWEN3_MOE
from llm_jax.hf.families.smollm3 import SMOLLM3
from llm_jax.hf.family import Family

# The first that an architecture resembles writes it: a family stands before those that it is a special case of.
MOST_SPECIAL_FIRST = (OPENAI_GPT, GPT2, GPT_NEOX, DEEPSEEK_V3, GPT_OSS, GEMMA3, GEMMA2, GEMMA, PHI3, QWEN3_MOE, MIXTRAL,
                      OLMO3, OLMO2, QWEN3, QWEN2, SMOLLM3, MISTRAL, LLAMA)

FAMILIES = {family.model_type: family for family in MOST_SPECIAL_FIRST}


def family_of(config: Architecture) -> Family:
  """The family that `config` resembles most. Whether it can express `config` exactly, `config_to_hf` checks."""
  require(config.family is None or config.family in FAMILIES, 'model.family', config.family,
          f'use None, or one of {tuple(FAMILIES)}')
  return next(family for family in MOST_SPECIAL_FIRST if family.resembles(config))
