"""Chunked cross-entropy against float64 NumPy, optax and itself on other devices."""
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from llm_jax.config.run import Mesh
from llm_jax.objectives.cross_entropy import chunked_cross_entropy
from llm_jax.objectives.log_probs import token_log_probs
from llm_jax.sharding.mesh import make_mesh
from llm_jax.sharding.rules import batch_sharding
from tests.combinations import each_with_one

B, T, D, V = 4, 11, 6, 24


@pytest.fixture
def inputs():
  r = np.random.default_rng(0)
  x, w = r.standard_normal((B, T, D), np.float32), r.standard_normal((V, D), np.float32)
  targets = r.integers(0, V, (B, T)).astype(np.int32)
  weights = (r.random((B, T)) * (r.random((B, T)) < 0.8)).astype(np.float32)
  return x, w, targets, weights


def close(got, want, tolerance=1e-6):
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  assert got.shape == want.shape
  assert np.abs(got - want).max() <= tolerance * max(np.abs(want).max(), 1e-30)


def numpy_cross_entropy(x, w, targets, weights, z_loss, soft_cap=None):
  """float64: total, sums, and gradients in x and w."""
  x, w, weights = (np.asarray(a, np.float64) for a in (x, w, weights))
  logits, slope = x @ w.T, 1.0
  if soft_cap is not None:
    slope = np.cosh(logits / soft_cap) ** -2.0
    logits = soft_cap * np.tanh(logits / soft_cap)
  top = logits.max(-1, keepdims=True)
  lse = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
  nll = lse - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
  d = np.exp(logits - lse[..., None]) * (1 + 2 * z_loss * lse)[..., None] - np.eye(len(w))[targets]
  d *= weights[..., None] * slope
  sums = {'nll': (weights * nll).sum(), 'z': (weights * lse**2).sum(),
          'correct': (weights * (logits.argmax(-1) == targets)).sum()}
  return sums['nll'] + z_loss * sums['z'], sums, d @ w, np.einsum('btv,btd->vd', d, x)


@pytest.mark.parametrize('kernels', ['cpu', 'xla'])
@pytest.mark.parametrize('z_loss, soft_cap, chunk', each_with_one(
  [(0.0, None), (0.1, None), (0.0, 3.0), (0.1, 30.0)], [None, 1, 4, 11, 100]))
def test_values_and_gradients_match_float64(inputs, kernels, chunk, z_loss, soft_cap):
  x, w, targets, weights = inputs
  f = lambda x, w: chunked_cross_entropy(x, w, targets, weights, z_loss, chunk, kernels, soft_cap)
  total, sums, dx, dw = numpy_cross_entropy(*inputs, z_loss, soft_cap)
  alone = jax.jit(f)(x, w)
  (value, aux), grads = jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(x, w)
  for got, got_sums in (alone, (value, aux)):
    close(got, total)
    assert got_sums.keys() == sums.keys()
    for name in sums:
      close(got_sums[name], sums[name])
  close(grads[0], dx)
  close(grads[1], dw)


@pytest.mark.parametrize('soft_cap', [None, 2.0])
def test_gradient_in_the_weights_is_the_loss_of_each_token(inputs, soft_cap):
  x, w, targets, weights = inputs
  total = lambda weights: chunked_cross_entropy(x, w, targets, weights, chunk=3, soft_cap=soft_cap)[0]
  got = jax.jit(jax.grad(total))(weights)
  logits = x @ w.T if soft_cap is None else soft_cap * np.tanh(x @ w.T / soft_cap)
  close(got, optax.losses.softmax_cross_entropy_with_integer_labels(logits, targets))


@pytest.mark.parametrize('kernels', ['cpu', 'xla'])
def test_soft_capped_bfloat16_matches_plain_autodiff(inputs, kernels):
  x, w, targets, weights = inputs
  x = jnp.asarray(x, jnp.bfloat16)

  def plain(x, w):
    logits = 2.0 * jnp.tanh(jnp.einsum('btd,vd->btv', x, w.astype(x.dtype), preferred_element_type=jnp.float32) / 2.0)
    return jnp.sum(weights * optax.losses.softmax_cross_entropy_with_integer_labels(logits, targets))

  capped = lambda x, w: chunked_cross_entropy(x, w, targets, weights, 0.0, 4, kernels, soft_cap=2.0)[0]
  (value, grads), (want, want_grads) = (jax.jit(jax.value_and_grad(f, (0, 1)))(x, w) for f in (capped, plain))
  close(value, want)
  for g, e in zip(grads, want_grads, strict=True):
    close(g, e, 1e-2)


def test_sums_carry_no_gradient(inputs):
  x, w, targets, weights = inputs
  grads = jax.jit(jax.grad(lambda x: sum(chunked_cross_entropy(x, w, targets, weights)[1].values())))(x)
  assert not np.asarray(grads).any()


def test_uniform_logits_give_log_vocab_and_z(inputs):
  _, w, targets, weights = inputs
  total, sums = chunked_cross_entropy(np.zeros((B, T, D), np.float32), w, targets, weights, z_loss=1e-4, chunk=4)
  close(sums['nll'], weights.sum(dtype=np.float64) * np.log(V))
  close(total, weights.sum(dtype=np.float64) * (np.log(V) + 1e-4 * np.log(V) ** 2))


@pytest.mark.parametrize('kernels', ['cpu', 'xla'])
def test_large_logits_and_all_weights_zero_stay_finite(inputs, kernels):
  x, w, targets, weights = inputs
  total = lambda x, c: chunked_cross_entropy(x, 1e4 * w, targets, c * weights, 1e-4, 4, kernels)[0]
  grad = jax.jit(jax.value_and_grad(total))
  capped = lambda x: chunked_cross_entropy(x, 1e4 * w, targets, weights, 1e-4, 4, kernels, soft_cap=30.0)[0]
  value, dx = jax.jit(jax.value_and_grad(capped))(x)
  assert value <= weights.sum() * (60 + np.log(V) + 1e-4 * 34**2) and np.isfinite(dx).all()
  for c in (0.0, 1.0):
    value, dx = grad(x, c)
    assert np.isfinite(value) and np.isfinite(dx).all() and bool(c) == bool(np.asarray(dx).any())


@pytest.mark.parametrize('kernels', ['cpu', 'xla'])
def test_bfloat16_inputs_have_float32_logits(inputs, kernels):
  x, w, targets, weights = inputs
  x, w16 = jnp.asarray(x, jnp.bfloat16), np.asarray(jnp.asarray(w, jnp.bfloat16), np.float32)
  f = lambda x, w: chunked_cross_entropy(x, w, targets, weights, 0.1, 4, kernels)
  (value, sums), (dx, dw) = jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(x, w)
  total, want, want_dx, want_dw = numpy_cross_entropy(np.asarray(x, np.float32), w16, targets, weights, 0.1)
  assert (value.dtype, dx.dtype, dw.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
  close(value, total)
  close(sums['nll'], want['nll'])
  close(dx, want_dx, 1e-2)
  close(dw, want_dw, 1e-2)


@pytest.mark.parametrize('kernels', ['cpu', 'xla'])
def test_inside_remat_scan_and_outer_scale(inputs, kernels):
  """As gradient accumulation uses it: two microbatches in a scan, a factor outside."""
  x, w, targets, weights = inputs
  halves = [a.reshape(2, B // 2, *a.shape[1:]) for a in (x, targets, weights)]

  def loss(w):
    part = jax.checkpoint(lambda x, t, c: chunked_cross_entropy(x, w, t, c, 0.1, 4, kernels)[0])
    return 0.25 * jax.lax.scan(lambda s, a: (s + part(*a), None), 0.0, halves)[0]

  value, grad = jax.jit(jax.value_and_grad(loss))(w)
  total, _, _, dw = numpy_cross_entropy(*inputs, 0.1)
  close(value, 0.25 * total)
  close(grad, 0.25 * dw)


@pytest.mark.parametrize('kernels', ['cpu', 'xla'])
@pytest.mark.parametrize('batch, vocab', [(('data', 'fsdp'), None), ('data', 'tensor'), (None, ('fsdp', 'tensor'))])
def test_sharded_is_unsharded(inputs, kernels, batch, vocab):
  mesh = jax.make_mesh((2, 2, 2), ('data', 'fsdp', 'tensor'), axis_types=(AxisType.Auto,) * 3)
  x, w, targets, weights = inputs
  f = functools.partial(chunked_cross_entropy, z_loss=0.1, chunk=4, kernels=kernels)
  run = jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))
  put = lambda a, *spec: jax.device_put(a, NamedSharding(mesh, PartitionSpec(*spec)))
  want = run(x, w, targets, weights)
  with jax.set_mesh(mesh):
    got = run(put(x, batch), put(w, vocab), put(targets, batch), put(weights, batch))
  for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    close(g, e)


@pytest.mark.parametrize('sizes', [dict(fsdp=8), dict(data=2, fsdp=2, tensor=2), dict(data=2, expert=2, context=2)],
                         ids=str)
@pytest.mark.parametrize('loss', ['cross-entropy', 'log-probabilities'])
def test_the_heads_gradient_crosses_the_network_once(sizes, loss):
  """Not once a chunk: no collective in the loop is nearly as large. Over fsdp a device gets its share of the sum alone.
  And the gradient is that of one device."""
  b, t, d, v = 8, 16, 16, 64
  rng = np.random.default_rng(0)
  x, w = rng.standard_normal((b, t, d), np.float32), rng.standard_normal((v, d), np.float32)
  targets, weights = rng.integers(0, v, (b, t)), rng.random((b, t), np.float32)
  gradient = jax.jit(jax.grad({
    'cross-entropy': lambda x, w: chunked_cross_entropy(x, w, targets, weights, chunk=4, kernels='xla')[0],
    'log-probabilities': lambda x, w: (weights * token_log_probs(x, w, targets, chunk=4, kernels='xla')).sum(),
  }[loss], 1))
  mesh, want = make_mesh(Mesh(**sizes)), gradient(x, w)
  with jax.set_mesh(mesh):
    rows = NamedSharding(mesh, PartitionSpec(*batch_sharding(mesh).spec, None))
    compiled = gradient.lower(jax.device_put(x, rows), w).compile()
    close(compiled(jax.device_put(x, rows), w), want)
  text = compiled.as_text()
  found = {True: [], False: []}  # elements of each result, by whether a loop makes it
  for computation in re.split(r'\n(?=%|ENTRY)', text):
    in_loop = f'body={computation.split(" ", 1)[0]},' in text
    for results in re.findall(r'= (.*?) (?:all-reduce|all-gather|reduce-scatter)(?:-start)?\(', computation):
      found[in_loop] += [math.prod(map(int, shape.split(','))) for shape in re.findall(r'\[([\d,]+)\]', results)]
  whole = d * v // sizes.get('tensor', 1)
  share = whole // sizes.get('fsdp', 1)
  assert share in found[False] and max(found[True], default=0) <= whole // 4


def test_the_logits_of_the_batch_never_exist():
  """No value in the compiled gradient has as many elements as [B, T, V]."""
  b, t, d, v = 2, 64, 8, 1024
  shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((b, t, d), (v, d), (b, t))]
  f = lambda x, w, c, y: chunked_cross_entropy(x, w, y, c, chunk=8)[0]
  compiled = jax.jit(jax.grad(f, (0, 1))).lower(*shapes, jax.ShapeDtypeStruct((b, t), jnp.int32)).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 4 * b * t * v
