"""The kernels against jax.nn, float64 NumPy and central differences."""
import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from llm_jax.modules.kernels import attention as attention_module
from llm_jax.modules.kernels.attention import causal_attention
from llm_jax.modules.kernels.linear import linear
from llm_jax.modules.kernels.norm import normalize

KERNELS = ('cpu', 'xla')


def normal(seed, *shape, dtype=np.float32):
  return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def close(got, want, tolerance=1e-6):
  """Relative to the largest entry: what float32 sums can promise."""
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  assert got.shape == want.shape
  assert np.abs(got - want).max() <= tolerance * max(np.abs(want).max(), 1e-30)


def numpy_attention(q, k, v, segments):
  """float64, one query at a time."""
  q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
  B, T, H, K = q.shape
  out = np.zeros_like(q)
  for b in range(B):
    for h in range(H):
      g = h // (H // k.shape[2])
      for t in range(T):
        seen = [s for s in range(t + 1) if segments is None or segments[b, s] == segments[b, t]]
        scores = k[b, seen, g] @ q[b, t, h] / np.sqrt(K)
        p = np.exp(scores - scores.max())
        out[b, t, h] = p / p.sum() @ v[b, seen, g]
  return out


def packed(B, T):
  """Segment ids with several documents a row and padding (0) at the end of some."""
  ids = np.sort(np.random.default_rng(5).integers(1, 4, (B, T)), axis=1).astype(np.int32)
  ids[0, T - T // 5:] = 0
  return ids


@pytest.fixture
def small_blocks(monkeypatch):
  """Several blocks of queries, the last one short, at lengths that tests can afford."""
  monkeypatch.setattr(attention_module, 'BLOCK', 8)


@pytest.mark.parametrize('kernels', KERNELS)
@pytest.mark.parametrize('shape, contract', [((6, 4), 1), ((6, 2, 3), 1), ((2, 3, 5), 2)])
def test_linear_and_its_gradient(kernels, shape, contract):
  x, w = normal(0, 2, 7, *shape[:contract]), normal(1, *shape)
  y, pull = jax.vjp(lambda x, w: linear(x, w, contract, kernels), x, w)
  close(y, np.tensordot(x.astype(np.float64), w, contract))
  dy = normal(2, *y.shape)
  dx, dw = pull(dy)
  outer = len(shape) - contract
  close(dx, np.tensordot(dy.astype(np.float64), w, (range(2, 2 + outer), range(contract, len(shape)))))
  close(dw, np.tensordot(x.astype(np.float64), dy, ((0, 1), (0, 1))))


@pytest.mark.parametrize('kernels', KERNELS)
@pytest.mark.parametrize('H, G', [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize('T', [8, 19])
@pytest.mark.parametrize('segmented', [False, True])
def test_attention_matches_float64_numpy(small_blocks, kernels, H, G, T, segmented):
  q, k, v = normal(0, 2, T, H, 6), normal(1, 2, T, G, 6), normal(2, 2, T, G, 6)
  segments = packed(2, T) if segmented else None
  close(causal_attention(q, k, v, segments, kernels=kernels), numpy_attention(q, k, v, segments))


@pytest.mark.parametrize('H, G', [(4, 4), (6, 2)])
@pytest.mark.parametrize('segmented', [False, True])
def test_attention_gradient_matches_jax_nn(small_blocks, H, G, segmented):
  T = 19
  q, k, v, dy = normal(0, 2, T, H, 6), normal(1, 2, T, G, 6), normal(2, 2, T, G, 6), normal(3, 2, T, H, 6)
  segments = packed(2, T) if segmented else None
  mask = None if segments is None else (segments[:, :, None] == segments[:, None])[:, None]
  want = jax.vjp(lambda *a: jax.nn.dot_product_attention(*a, mask=mask, is_causal=True), q, k, v)[1](dy)
  got = jax.vjp(lambda *a: causal_attention(*a, segments, kernels='cpu'), q, k, v)[1](dy)
  for g, w in zip(got, want, strict=True):
    close(g, w)


@pytest.mark.parametrize('kernels', KERNELS)
@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
def test_attention_keeps_the_dtype(small_blocks, kernels, dtype):
  q, k, v = (jnp.asarray(normal(i, 1, 16, heads, 8), dtype) for i, heads in enumerate((4, 2, 2)))
  y, pull = jax.vjp(lambda *a: causal_attention(*a, kernels=kernels), q, k, v)
  assert [a.dtype for a in (y, *pull(y))] == [dtype] * 4
  close(y, numpy_attention(q, k, v, None), 2e-2 if dtype == jnp.bfloat16 else 1e-6)


@pytest.mark.parametrize('kernels', KERNELS)
def test_a_document_and_the_past_are_isolated_bitwise(small_blocks, kernels):
  T, segments = 21, packed(2, 21)
  q, k, v = normal(0, 2, T, 4, 6), normal(1, 2, T, 2, 6), normal(2, 2, T, 2, 6)
  run = jax.jit(lambda *a: causal_attention(*a, segments, kernels=kernels))
  before = np.asarray(run(q, k, v))
  other = (segments == 1)[:, :, None, None]  # everything in document 1 changes
  after = np.asarray(run(*(np.where(other, 10 * a + 1, a) for a in (q, k, v))))
  assert (before == after)[segments != 1].all() and not (before == after)[segments == 1].any()

  run = jax.jit(lambda *a: causal_attention(*a, kernels=kernels))
  before, after = (np.asarray(run(q, k, np.where(np.arange(T)[:, None, None] < 13, v, c * v))) for c in (1, 3))
  assert (before == after)[:, :13].all() and not (before == after)[:, 13:].any()


@pytest.mark.parametrize('kernels', KERNELS)
def test_gradients_stay_in_a_document_bitwise(small_blocks, kernels):
  T, segments = 21, packed(2, 21)
  q, k, v = normal(0, 2, T, 4, 6), normal(1, 2, T, 2, 6), normal(2, 2, T, 2, 6)
  loss = lambda q, k, v: jnp.sum(jnp.where((segments == 1)[..., None, None],
                                           causal_attention(q, k, v, segments, kernels=kernels), 0))
  for g in jax.grad(loss, (0, 1, 2))(q, k, v):
    assert not np.asarray(g)[segments != 1].any()


def test_attention_dropout_drops_weights_and_keeps_the_mean(small_blocks):
  q, k, v = normal(0, 1, 12, 4, 6), normal(1, 1, 12, 2, 6), np.ones((1, 12, 2, 6), np.float32)
  segments = packed(1, 12)
  run = jax.jit(lambda rng, rate: causal_attention(q, k, v, segments, dropout_rate=rate, dropout_rng=rng),
                static_argnums=1)
  close(run(jax.random.key(0), 1e-9), causal_attention(q, k, v, segments, kernels='xla'))
  sums = jax.lax.map(lambda r: run(r, 0.5), jax.random.split(jax.random.key(1), 2000))
  first = np.asarray(sums)[:, 0, 0]  # the first position sees itself only: 0 or 1 / (1 - rate)
  assert set(np.unique(first)) == {0.0, 2.0}
  assert np.abs(np.asarray(sums).mean(0) - 1).max() < 0.15


@pytest.mark.parametrize('kernels', KERNELS)
@pytest.mark.parametrize('biased', [False, True])
def test_normalize_matches_float64(kernels, biased):
  x, scale, bias = 3 * normal(0, 2, 5, 16) + 1, normal(1, 16), normal(2, 16) if biased else None
  wide = x.astype(np.float64)
  wide = wide - wide.mean(-1, keepdims=True) if biased else wide
  want = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * scale + (bias if biased else 0)
  close(normalize(x, scale, bias, 1e-5, kernels), want)
  assert normalize(jnp.asarray(x, jnp.bfloat16), scale, bias, 1e-5, kernels).dtype == jnp.bfloat16


@pytest.mark.parametrize('transform', ['scan', 'remat', 'vmap'])
def test_cpu_kernels_under_transformations(small_blocks, transform):
  q, k, v, w = normal(0, 2, 9, 4, 6), normal(1, 2, 9, 2, 6), normal(2, 2, 9, 2, 6), normal(3, 2, 4, 6, 4, 6)

  def layer(x, w, kernels):
    return x + linear(causal_attention(x, k, v, kernels=kernels), w, 2, kernels)

  def loss(w, kernels):
    if transform == 'vmap':
      return jnp.sum(jax.vmap(functools.partial(layer, kernels=kernels), (None, 0))(q, w) ** 2)
    step = functools.partial(layer, kernels=kernels)
    step = jax.checkpoint(step) if transform == 'remat' else step
    return jnp.sum(jax.lax.scan(lambda x, w: (step(x, w), None), q, w)[0] ** 2)

  got, want = (jax.jit(jax.grad(loss), static_argnums=1)(w, kernels) for kernels in KERNELS)
  close(got, want)


@pytest.mark.parametrize('spec', [('batch', None, None, None), (None, None, 'heads', None),
                                  ('batch', 'time', 'heads', None)])
def test_sharded_is_unsharded(small_blocks, spec):
  mesh = jax.make_mesh((2, 2, 2), ('batch', 'time', 'heads'), axis_types=(AxisType.Auto,) * 3)
  q, k, v, w = normal(0, 2, 20, 4, 6), normal(1, 2, 20, 2, 6), normal(2, 2, 20, 2, 6), normal(3, 4, 6, 4, 6)
  segments = packed(2, 20)
  loss = lambda q, k, v, w: jnp.sum(linear(causal_attention(q, k, v, segments, kernels='cpu'), w, 2, 'cpu') ** 2)
  run = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))
  want = run(q, k, v, w)
  put = lambda a, s: jax.device_put(a, NamedSharding(mesh, PartitionSpec(*s)))
  with jax.set_mesh(mesh):
    got = run(put(q, spec), put(k, spec), put(v, spec), put(w, (spec[2], None, None, None)))
  for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    close(g, e)


def test_custom_derivatives_against_central_differences():
  """In float64, in a process of its own: x64 is a setting of the whole process."""
  code = '''
import jax, numpy as np
jax.config.update('jax_enable_x64', True)
from jax.test_util import check_grads
from llm_jax.modules.kernels import attention, norm, ordering
from llm_jax.modules.kernels.linear import linear
from llm_jax.objectives.cross_entropy import chunked_cross_entropy
attention.BLOCK = 4
r = np.random.default_rng(0)
n = lambda *s: r.standard_normal(s)
ids = np.array([[1, 1, 1, 2, 2, 2, 0], [1, 2, 2, 2, 3, 3, 3]])
check = lambda f, *a: check_grads(f, a, 1, ('rev',), atol=1e-6, rtol=1e-6, eps=1e-5)
check(lambda x, w: linear(x, w, 2, 'cpu'), n(2, 3, 2, 4), n(2, 4, 5))
x, s = n(2, 3, 6), n(6)
check(lambda x, s: norm.normalize(x, s, None, 1e-5, 'cpu'), x, s)
check(lambda x, s, b: norm.normalize(x, s, b, 1e-5, 'cpu'), x, s, n(6))
check(lambda a, b: ordering.elementwise(lambda a, b: jax.nn.silu(a) * b, a, b, kernels='cpu'), n(2, 5), n(2, 5))
check(lambda q, k, v: attention._blocked(q, k, v, ids), n(2, 7, 4, 6), n(2, 7, 2, 6), n(2, 7, 2, 6))
y, wt = r.integers(0, 11, (2, 7)), r.uniform(0, 2, (2, 7))
for kernels in ('cpu', 'xla'):
  check(lambda x, w, wt: 3 * chunked_cross_entropy(x, w, y, wt, 0.1, 3, kernels)[0], n(2, 7, 5), n(11, 5), wt)
'''
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                        env={**os.environ, 'PYTHONPATH': str(pathlib.Path(__file__).parents[2])})
  assert done.returncode == 0, done.stderr[-2000:]
