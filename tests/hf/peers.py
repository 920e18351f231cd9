"""Tiny random decoders of `transformers`: the reference of every test in this folder."""
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from llm_jax import hf
from llm_jax.batch import LanguageModelBatch

torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

VOCAB = 131  # a prime: nothing divides it
NO_CONTROL = dict(bos_token_id=None, eos_token_id=None)


def gpt2(**changes):
  return transformers.GPT2Config(**(dict(
    vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=48, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    **NO_CONTROL) | changes))


def llama(base=10_000.0, **changes):
  return transformers.LlamaConfig(**(dict(
    vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=72, rope_parameters=dict(rope_type='default', rope_theta=base), **NO_CONTROL) | changes))


CASES = {
  'gpt2': gpt2(),
  'gpt2 untied, exact gelu, narrow': gpt2(tie_word_embeddings=False, activation_function='gelu', n_inner=56),
  'llama gqa': llama(),
  'llama mha': llama(num_key_value_heads=4, rms_norm_eps=1e-5),
  'llama mqa, large head': llama(num_key_value_heads=1, head_dim=24),
  'llama tied, base 500000': llama(base=500_000.0, tie_word_embeddings=True),
  'llama biases': llama(attention_bias=True, mlp_bias=True),
}


def make(config, seed=0):
  """A model with weights large enough that no part of it is close to linear."""
  torch.manual_seed(seed)
  model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation='eager').eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      parameter.normal_(std=0.1)
      if parameter.ndim == 1 and name.endswith('.weight'):  # the norms' scales
        parameter += 1
  return model


def to_ours(model):
  """Architecture and parameters of a torch model."""
  config = hf.config_from_hf(model.config.to_dict())
  return config, hf.params_from_state_dict(config, {k: v.detach().numpy() for k, v in model.state_dict().items()})


def batch(seed=0, rows=3, time=40):
  """Random tokens, targets and 0/1 weights, one document a row."""
  random = np.random.default_rng(seed)
  tokens = random.integers(0, VOCAB, (rows, time + 1))
  weights = (random.random((rows, time)) < 0.7).astype(np.float32)
  positions = np.broadcast_to(np.arange(time), (rows, time))
  return LanguageModelBatch(*(jnp.asarray(x) for x in (
    tokens[:, :-1].astype(np.int32), tokens[:, 1:].astype(np.int32), weights, positions, np.ones_like(positions))))


def torch_loss(model, batch):
  """Mean cross-entropy of the weighted targets."""
  tokens, targets, weights = (torch.tensor(np.asarray(x)) for x in (batch.tokens, batch.targets, batch.weights))
  logits = model(tokens.long()).logits
  losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.long().flatten(), reduction='none')
  return (losses * weights.flatten()).sum() / weights.sum()
