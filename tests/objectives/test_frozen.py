"""Parameters that are read only, stored in the dtype of the computation."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.family import FAMILIES
from llm_jax import paths
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.frozen import is_cast_at_use, read_only
from tools.golden_cases import narrow

QUICK = ('gpt2', 'deepseek')  # dense with biases; latent attention, experts and shared ones


def random_params(model):
  """Numbers that bfloat16 rounds, in every parameter."""
  abstract = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: np.float32(0.1 * rng.standard_normal(leaf.shape)), abstract)


@pytest.mark.parametrize('family', [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
                                    for name in FAMILIES])
def test_no_result_changes(family):
  """In bfloat16, bit by bit."""
  model = Transformer(narrow(FAMILIES[family]), Execution('bfloat16', unroll=False, kernels='xla'))
  params = random_params(model)
  stored = read_only(params, jnp.bfloat16)
  tokens = jnp.arange(24).reshape(2, 12) % 7
  logits = jax.jit(lambda params: model.apply({'params': params}, tokens))
  np.testing.assert_array_equal(logits(stored), logits(params))


@pytest.mark.parametrize('family', ['deepseek', 'llama2'])
def test_what_is_used_in_float32_stays(family):
  model = Transformer(narrow(FAMILIES[family]), Execution())
  params = {**random_params(model), 'classifier': {'w': np.zeros((48, 2), np.float32)}}
  for path, leaf in paths.leaves(read_only(params, jnp.bfloat16)):
    is_stored = path.endswith('/w') and 'router' not in path and 'classifier' not in path
    assert leaf.dtype == (jnp.bfloat16 if is_stored else jnp.float32), path
    assert is_cast_at_use(path) == is_stored


def test_shapes_are_those_of_the_arrays():
  model = Transformer(narrow(FAMILIES['llama2']), Execution())
  params = random_params(model)
  abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
  stored = read_only(params, jnp.bfloat16)
  for shape, array in zip(jax.tree.leaves(read_only(abstract, jnp.bfloat16)), jax.tree.leaves(stored), strict=True):
    assert (shape.shape, shape.dtype) == (array.shape, array.dtype)
