"""Adafactor layer by layer against `torch.optim.Adafactor`, and on one matrix against optax's."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from llm_jax import paths
from llm_jax.config.optimizers import Adafactor
from llm_jax.optim.optimizers import make_optimizer
from tests.optim.test_optimizers import LLAMA, far, init, matrices, random_like


def test_adafactor_is_torchs_layer_by_layer():
  """Its rate is the root mean square of the matrix, of 1e-3 at least, times the learning rate."""
  rate, decay = 1e-2, 0.1
  params = init(LLAMA)
  optimizer = make_optimizer(Adafactor(weight_decay=decay), params)
  state, update = optimizer.init(params), jax.jit(optimizer.update)
  theirs = {key: torch.nn.Parameter(torch.tensor(w)) for key, w in matrices(params).items()}
  torchs = torch.optim.Adafactor(theirs.values(), lr=rate, weight_decay=decay, eps=(1e-30, 1e-3))
  for t in range(10):
    grads = random_like(params, seed=t + 1)
    updates, state = update(grads, state, params)
    params = jax.tree.map(lambda p, u: p + rate * u, params, updates)
    for key, grad in matrices(grads).items():
      theirs[key].grad = torch.tensor(grad)
    torchs.step()
  ours = matrices(params)
  assert len(ours) == 3 * 7
  assert max(far(ours[key], w.detach().numpy()) for key, w in theirs.items()) <= 2e-6


@pytest.mark.parametrize('scale_by_parameter', [True, False])
def test_adafactor_of_an_embedding_and_of_a_norm_is_optaxs(scale_by_parameter):
  config = Adafactor(scale_by_parameter=scale_by_parameter)
  theirs = optax.adafactor(1.0, min_dim_size_to_factor=2, multiply_by_parameter_scale=scale_by_parameter)
  for path, shape in (('embedding/w', (40, 12)), ('final_norm/scale', (12,))):
    params = paths.nest({path: jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)})
    ours = make_optimizer(config, params)
    state, their_state = ours.init(params), theirs.init(params)
    for t in range(5):
      grads = random_like(params, seed=t)
      updates, state = ours.update(grads, state, params)
      expected, their_state = theirs.update(grads, their_state, params)
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), updates, expected)


def test_adafactor_keeps_rows_and_columns_alone():
  params = init(LLAMA)
  state = jax.eval_shape(make_optimizer(Adafactor(), params).init, params)
  sizes = {path: leaf.size for path, leaf in paths.leaves(state)}
  assert sizes['0/rows/blocks/block_0/attention/query/w'] == 3 * 16
  assert sizes['0/columns/blocks/block_0/attention/query/w'] == 3 * 4 * 4
  assert sizes['0/rows/embedding/w'] + sizes['0/columns/embedding/w'] == 33 + 16


def test_what_has_no_gradient_stays():
  params = init(LLAMA)
  optimizer = make_optimizer(Adafactor(), params)
  updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
  assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(updates))
