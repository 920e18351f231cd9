"""Checkpoints of Hugging Face: one weight-name table per family (`families/`), used in both directions."""
from llm_jax.hf.configs import config_from_hf, config_to_hf
from llm_jax.hf.files import load_pretrained, save_pretrained
from llm_jax.hf.weights import params_from_state_dict, state_dict_from_params

__all__ = ['config_from_hf', 'config_to_hf', 'load_pretrained', 'params_from_state_dict', 'save_pretrained',
           'state_dict_from_params']
