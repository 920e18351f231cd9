"""The families of `transformers` that are read and written: weight table and configuration of each in one file."""
from llm_jax.config.model.architecture import (
  Architecture,
  LatentAttention,
  MixtureOfExperts,
  PostNormBlock,
  RoPE,
  SandwichBlock,
  ZeroCenteredRMSNorm,
)
from llm_jax.hf.families.deepseek import DEEPSEEK_V3
from llm_jax.hf.families.gemma import GEMMA, GEMMA2
from llm_jax.hf.families.gpt import GPT2, OPENAI_GPT
from llm_jax.hf.families.llama import LLAMA, MISTRAL
from llm_jax.hf.families.mixtral import MIXTRAL
from llm_jax.hf.family import Family

FAMILIES = {family.model_type: family
            for family in (OPENAI_GPT, GPT2, LLAMA, MISTRAL, MIXTRAL, GEMMA, GEMMA2, DEEPSEEK_V3)}


def family_of(config: Architecture) -> Family:
  """The family that may express `config`; `config_to_hf` says whether it does."""
  blocks = config.prefix + config.pattern
  if not isinstance(config.positions, RoPE):
    return OPENAI_GPT if isinstance(blocks[0], PostNormBlock) else GPT2
  if isinstance(blocks[0].attention, LatentAttention):
    return DEEPSEEK_V3
  if isinstance(blocks[0], SandwichBlock):
    return GEMMA2
  if isinstance(blocks[0].norm, ZeroCenteredRMSNorm):
    return GEMMA
  if isinstance(blocks[0].feed_forward, MixtureOfExperts):
    return MIXTRAL
  return MISTRAL if blocks[0].attention.window else LLAMA
