"""DeepSeek-V3's blocks that predict one token further, in and out of its files, against those of `transformers`."""
import dataclasses

import jax
import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_layers import MtpModel

from llm_jax import hf
from llm_jax.config.errors import ConfigError
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from tests.hf import hf_models

LAYERS = hf_models.CASES['deepseek'].num_hidden_layers
AHEAD = f'model.layers.{LAYERS}.'


@pytest.fixture(scope='module')
def made():
  """A random decoder with one such block, large enough that no part of it is close to linear."""
  config = hf.config_from_hf(hf_models.CASES['deepseek'].to_dict())
  assert len(config.multi_token) == 1
  model = Transformer(config, Execution(kernels='xla', unroll=False))
  params = jax.jit(lambda key: model.init(key, hf_models.batch().tokens)['params'])(jax.random.key(0))
  leaves, tree = jax.tree.flatten(params)
  random = np.random.default_rng(1)
  params = tree.unflatten([np.float32((leaf.ndim == 1) + 0.1 * random.standard_normal(leaf.shape)) for leaf in leaves])
  return config, params, model


@pytest.fixture(scope='module')
def folder(made, tmp_path_factory):
  folder = tmp_path_factory.mktemp('exported') / 'model'
  hf.save_pretrained(folder, *made[:2])
  return folder


def test_transformers_predicts_the_same(made, folder):
  config, params, model = made
  tokens = hf_models.batch().tokens

  @jax.jit
  def both(params):
    main, ahead = model.apply({'params': params}, tokens, method=lambda m, t: m.features_ahead(t)[0])
    return [model.apply({'params': params}, x, method='logits') for x in (main, ahead)]

  got_main, got_ahead = both(params)
  main = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation='eager')
  main._keys_to_ignore_on_load_unexpected = [AHEAD.replace('.', r'\.')]  # their class knows the layer of the 671B only
  ahead = MtpModel.from_pretrained(main)
  ids = torch.tensor(np.asarray(tokens)).long()
  with torch.no_grad():
    out = main.model(ids)
    positions = torch.arange(ids.shape[1] - 1)[None]
    further = ahead.forward_layer(0, out.last_hidden_state[:, :-1], positions, None, input_ids=ids[:, 1:])
    want_main, want_ahead = main.lm_head(out.last_hidden_state).numpy(), main.lm_head(further).numpy()
  np.testing.assert_allclose(got_main, want_main, rtol=0, atol=1e-5)
  np.testing.assert_allclose(got_ahead[:, :want_ahead.shape[1]], want_ahead, rtol=0, atol=1e-5)
  assert np.abs(want_ahead).max() > 0.5


def test_round_trip(made, folder, tmp_path):
  config, params, _ = made
  again, values = hf.load_pretrained(folder)
  assert again.multi_token == config.multi_token
  jax.tree.map(np.testing.assert_array_equal, values, params)
  hf.save_pretrained(tmp_path / 'again', again, values)
  first, second = hf_models.tensors(folder), hf_models.tensors(tmp_path / 'again')
  assert first.keys() == second.keys() and all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_repeated_embedding_and_head(made, folder):
  """Published files repeat them in the layer: they may be absent, and must not differ."""
  config, params, _ = made
  state = hf_models.tensors(folder)
  copies = {f'{AHEAD}embed_tokens.weight': 'model.embed_tokens.weight',
            f'{AHEAD}shared_head.head.weight': 'lm_head.weight'}
  for copy, original in copies.items():
    np.testing.assert_array_equal(state[copy], state[original])
  without = {name: tensor for name, tensor in state.items() if name not in copies}
  jax.tree.map(np.testing.assert_array_equal, hf.params_from_state_dict(config, without), params)
  for copy in copies:
    with pytest.raises(ConfigError, match=f'{copy} differs'):
      hf.params_from_state_dict(config, state | {copy: state[copy] + 1})


def test_files_without_the_block(made, tmp_path):
  """transformers' own class neither reads nor writes it, and states it all the same."""
  hf_models.make(hf_models.CASES['deepseek']).save_pretrained(tmp_path)
  config, _ = hf.load_pretrained(tmp_path)
  assert config == dataclasses.replace(made[0], multi_token=())
  assert hf.config_to_hf(config)['num_nextn_predict_layers'] == 0
