"""Checkpoints of Hugging Face: one weight-name table per family (`families/`), used in both directions."""
from llm_jax.hf.configs import config_from_hf, config_to_hf
from llm_jax.hf.digests import folder_digests
from llm_jax.hf.files import check_pretrained, load_pretrained, read_config, save_pretrained
from llm_jax.hf.meta import load_meta, save_meta
from llm_jax.hf.tokenizer import read_tokenizer, template_of, tokenizer_files
from llm_jax.hf.uptrain import group_heads
from llm_jax.hf.vocabulary import resize_vocabulary
from llm_jax.hf.weights import params_from_state_dict, state_dict_from_params

__all__ = ['check_pretrained', 'config_from_hf', 'config_to_hf', 'folder_digests', 'group_heads', 'load_meta',
           'load_pretrained', 'params_from_state_dict', 'read_config', 'read_tokenizer', 'resize_vocabulary',
           'save_meta', 'save_pretrained', 'state_dict_from_params', 'template_of', 'tokenizer_files']
