"""Families of decoders, one file each, as their papers' tables print them."""
from llm_jax.config.presets.gpt2 import gpt2, gpt2_124m
from llm_jax.config.presets.llama import llama, llama3_8b

__all__ = ['gpt2', 'gpt2_124m', 'llama', 'llama3_8b']
