"""Multi-head to grouped-query and multi-query by mean pooling (Ainslie et al. 2023, section 2.1)."""
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import hf
from llm_jax.config import presets
from llm_jax.config.errors import ConfigError
from llm_jax.hf.uptrain import group_heads
from llm_jax.hf.weights import parameter_shapes
from llm_jax.modules.transformer import Transformer
from tests.hf import hf_models


@pytest.fixture(scope='module')
def model():
  return hf_models.to_ours(hf_models.make(hf_models.llama(num_key_value_heads=4, attention_bias=True)))


@pytest.mark.parametrize('groups', (1, 2, 4))
def test_heads_are_means(groups, model, tmp_path):
  config, params = model
  grouped, pooled = group_heads(config, params, groups)
  assert grouped.pattern[0].attention.kv_heads == groups
  before, after = (hf.state_dict_from_params(*pair) for pair in ((config, params), (grouped, pooled)))
  for name, tensor in before.items():
    if 'k_proj' in name or 'v_proj' in name:  # their rows are heads of 8
      heads = tensor.reshape(4, 8, -1)
      by_hand = np.stack([heads[i * (4 // groups):(i + 1) * (4 // groups)].mean(0) for i in range(groups)])
      np.testing.assert_allclose(after[name], by_hand.reshape(after[name].shape), rtol=1e-6, atol=1e-7)
    else:
      np.testing.assert_array_equal(after[name], tensor)
  hf.save_pretrained(tmp_path / 'out', grouped, pooled)
  assert hf.load_pretrained(tmp_path / 'out')[0].pattern == grouped.pattern or groups == 4


def test_equal_heads_of_a_group_change_nothing(model):
  config, params = model
  twin = group_heads(config, params, 2)[1]
  attention = params['blocks']['block_0']['attention']
  equal = {name: jax.tree.map(lambda leaf: np.repeat(leaf, 2, axis=-2), twin['blocks']['block_0']['attention'][name])
           for name in ('key', 'value')}
  blocks = {'block_0': params['blocks']['block_0'] | {'attention': attention | equal}}
  repeated = params | {'blocks': blocks}
  grouped, pooled = group_heads(config, repeated, 2)
  tokens = hf_models.batch().tokens
  want = jax.jit(Transformer(config).apply)({'params': repeated}, tokens)
  got = jax.jit(Transformer(grouped).apply)({'params': pooled}, tokens)
  np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)


def test_every_block_and_only_its_heads():
  """Layers of several kinds; jax arrays."""
  config = presets.gemma2(32, 4, 4, 4, 64, head_dim=8, vocab_size=64)
  shapes = {path: jnp.zeros(shape) for path, shape in parameter_shapes(config).items()}
  params = flax.traverse_util.unflatten_dict(shapes, sep='/')
  grouped, pooled = group_heads(config, params, 1)
  assert [block.attention.kv_heads for block in grouped.pattern] == [1, 1]
  assert pooled['blocks']['block_1']['attention']['value']['w'].shape == (2, 32, 1, 8)
  assert pooled['embedding']['w'] is params['embedding']['w']


def test_a_number_that_does_not_divide(model):
  for groups in (0, 3, 8):
    with pytest.raises(ConfigError, match=rf'^num_kv_heads = {groups}: use a divisor of the 4'):
      group_heads(*model, groups)


def test_latent_attention_has_no_heads_to_pool():
  config = presets.deepseek(16, 2, 1, 4, 8, 8, 6, 4, 5, 24, 8, num_experts=4, top_k=2)
  with pytest.raises(ConfigError, match='^num_kv_heads = 2: latent attention'):
    group_heads(config, {}, 2)
