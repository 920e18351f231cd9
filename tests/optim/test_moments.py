"""Moments in fewer bits: what is stored, and that training with them is as good."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import paths
from llm_jax.blockwise import EightBits
from llm_jax.config.errors import ConfigError
from llm_jax.config.optimizers import AdamW, Lion, Muon
from llm_jax.config.run import Mesh
from llm_jax.optim.moments import MIN_SIZE, StoredMoments, expand, store
from llm_jax.optim.optimizers import make_optimizer
from llm_jax.optim.rounding import round_stochastically
from llm_jax.sharding.mesh import make_mesh
from llm_jax.sharding.rules import state_shardings

SHAPES = {'embedding/w': (64, 64), 'blocks/block_0/attention/query/w': (2, 64, 4, 64),
          'blocks/block_0/attention_norm/scale': (2, 64)}


def make_params(seed=0, scale=0.02):
  rng = np.random.default_rng(seed)
  return paths.nest({path: jnp.asarray(scale * rng.normal(size=shape), jnp.float32) for path, shape in SHAPES.items()})


def num_bytes(tree):
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize('kind, bytes_a_number', [('float32', 4), ('bfloat16', 2), ('int8', 1 + 4 / 256)])
@pytest.mark.parametrize('optimizer, moments', [(AdamW, 2), (Lion, 1), (Muon, 1)])
def test_bytes_of_the_state(optimizer, moments, kind, bytes_a_number):
  shape = {'blocks': {'block_0': {'attention': {'query': {'w': jax.ShapeDtypeStruct((2, 64, 4, 64), jnp.float32)}}}}}
  made = make_optimizer(optimizer(moments=kind), shape)
  found = num_bytes(jax.eval_shape(made.init, shape))
  counters = 100
  assert 0 <= found - moments * bytes_a_number * 2 * 64 * 256 < counters


def test_float32_is_the_optimizer_itself():
  params = make_params()
  state = make_optimizer(AdamW(), params).init(params)
  assert not isinstance(state, StoredMoments)


@pytest.mark.parametrize('optimizer, kind, error', [
  (AdamW, 'bfloat16', 0.01), (Muon, 'bfloat16', 0.01), (Lion, 'bfloat16', 0.1),  # Lion's signs flip
  (AdamW, 'int8', 0.12), (Muon, 'int8', 0.12), (Lion, 'int8', 0.12)])
def test_updates_are_near_those_of_float32(optimizer, kind, error):
  """Over 20 noisy gradients with a common part, as in training."""
  params = make_params()
  exact, stored = make_optimizer(optimizer(), params), make_optimizer(optimizer(moments=kind), params)
  states = [exact.init(params), stored.init(params)]
  totals = [jax.tree.map(jnp.zeros_like, params)] * 2
  steps = [jax.jit(exact.update), jax.jit(stored.update)]
  mean = make_params(99, scale=1.0)
  for t in range(20):
    grads = jax.tree.map(jnp.add, mean, make_params(t + 1, scale=1.0))
    for i in range(2):
      updates, states[i] = steps[i](grads, states[i], params)
      totals[i] = jax.tree.map(jnp.add, totals[i], updates)
  for (path, wanted), (_, found) in zip(paths.leaves(totals[0]), paths.leaves(totals[1]), strict=True):
    assert np.linalg.norm(found - wanted) <= error * np.linalg.norm(wanted), path


def test_a_slow_second_moment_in_bfloat16_does_not_stop():
  """To the nearest, it would stay at its first value: with b2 = 0.999 a step changes less than half of a bit."""
  params = {'w': jnp.zeros((64, 64))}
  optimizer = make_optimizer(AdamW(b2=0.999, moments='bfloat16'), params)
  state = optimizer.init(params)
  update = jax.jit(optimizer.update)
  for _ in range(500):
    _, state = update({'w': jnp.ones((64, 64))}, state, params)
  [second] = [leaf for path, leaf in paths.leaves(state) if '/nu/' in path]
  assert second.dtype == jnp.bfloat16
  np.testing.assert_allclose(second.astype(jnp.float32).mean(), 1 - 0.999**500, rtol=0.01)


def test_stochastic_rounding():
  """A neighbour in bfloat16, the number itself where it is one, and exact in the mean."""
  key = jax.random.key(0)
  x = jnp.full(100_000, 1.0 + 2**-7 * 0.3, jnp.float32)
  rounded = round_stochastically(x, key).astype(jnp.float32)
  assert set(np.unique(rounded)) == {1.0, 1.0 + 2**-7}
  np.testing.assert_allclose((rounded - 1).mean() / 2**-7, 0.3, atol=0.01)
  np.testing.assert_array_equal(round_stochastically(-x, key).astype(jnp.float32), -rounded)
  exact = jax.random.normal(key, (1_000,), jnp.bfloat16)
  np.testing.assert_array_equal(round_stochastically(exact.astype(jnp.float32), key), exact)
  odd = jnp.array([jnp.inf, -jnp.inf, jnp.nan, 0.0])
  np.testing.assert_array_equal(round_stochastically(odd, key).astype(jnp.float32), odd)


def test_small_arrays_and_counters_stay_float32():
  params = make_params()
  state = make_optimizer(AdamW(moments='int8'), params).init(params)
  leaves = {path: leaf for path, leaf in paths.leaves(state)}
  assert leaves['state/0/mu/embedding/w/codes'].dtype == jnp.uint8
  assert leaves['state/0/nu/blocks/block_0/attention_norm/scale'].dtype == jnp.float32  # 128 numbers
  assert 2 * 64 < MIN_SIZE


@pytest.mark.parametrize('kind', ['bfloat16', 'int8'])
def test_any_mesh_stores_the_same_and_splits_the_moments_as_the_parameters(kind):
  params = make_params()
  exact = make_optimizer(AdamW(), params)
  _, state = exact.update(make_params(1), exact.init(params), params)
  store_third = lambda state: store(state, kind, jnp.full((), 3, jnp.int32))
  expected = jax.jit(store_third)(state)
  for mesh in (Mesh(data=1, fsdp=8), Mesh(data=1, fsdp=2, tensor=4)):
    devices = make_mesh(mesh)
    placed = jax.device_put(state, state_shardings(state, params, devices))
    found = jax.jit(store_third, out_shardings=state_shardings(expected, params, devices))(placed)
    for (path, a), (_, b) in zip(paths.leaves(expected), paths.leaves(found), strict=True):
      np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=path)
    query = found[0].mu['blocks']['block_0']['attention']['query']['w']
    codes = query.codes if isinstance(query, EightBits) else query
    assert codes.addressable_shards[0].data.size * 8 == codes.size
    if isinstance(query, EightBits):  # no block crosses the axis that fsdp splits
      assert query.maxima.addressable_shards[0].data.size * devices.shape['fsdp'] == query.maxima.size


def test_what_is_stored_is_what_is_read():
  state = make_optimizer(AdamW(), make_params()).init(make_params())
  state = jax.tree.map(lambda leaf: leaf + 0.001 if leaf.dtype == jnp.float32 else leaf, state)
  for kind in ('bfloat16', 'int8'):
    kept = store(state, kind, jnp.zeros((), jnp.int32))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.01), expand(kept), state)


def test_an_unknown_kind_is_refused():
  with pytest.raises(ConfigError, match="moments = 'int4': use one of float32, bfloat16, int8"):
    AdamW(moments='int4')
