"""The kernels against float64 NumPy, PyTorch and central differences."""
import contextlib
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

from llm_jax.config.run import Mesh
from llm_jax.modules.kernels import attention, blocked_attention, context_attention
from llm_jax.modules.kernels.attention import causal_attention
from llm_jax.modules.kernels.linear import linear
from llm_jax.modules.kernels.norm import normalize
from llm_jax.sharding.mesh import make_mesh
from tests.combinations import each_with_one
from tests.modules.references import close, normal, packed, torch_attention

KERNELS = ('cpu', 'xla')


@pytest.fixture
def small_blocks(monkeypatch):
  """Several blocks of queries, the last one short, at lengths that tests can afford."""
  monkeypatch.setattr(blocked_attention, 'BLOCK', 8)


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


FORMS = {
  'plain': {},
  'window': {'window': 5},
  'window of itself': {'window': 1},
  'window over blocks': {'window': 11},
  'window of the text': {'window': 19},
  'window beyond': {'window': 100},
  'soft cap': {'soft_cap': 0.7},
  'scale': {'scale': 0.9},
  'all': {'window': 6, 'soft_cap': 1.5, 'scale': 0.6},
}


SIZES = ((4, 4, 6, False), (6, 2, 6, True), (4, 1, 10, False))  # H, G, V, and whether documents are told apart


@pytest.mark.parametrize('kernels', KERNELS)
@pytest.mark.parametrize('H, G, V, segmented, form', each_with_one(SIZES, FORMS))
def test_attention_and_its_gradient_match_torch(small_blocks, kernels, H, G, V, segmented, form):
  T, form = 19, FORMS[form]
  q, k, v, dy = normal(0, 2, T, H, 6), normal(1, 2, T, G, 6), normal(2, 2, T, G, V), normal(3, 2, T, H, V)
  segments = packed(2, T) if segmented else None

  @jax.jit
  def run(q, k, v, dy):
    y, pull = jax.vjp(lambda *a: causal_attention(*a, segments, kernels=kernels, **form), q, k, v)
    return y, *pull(dy)

  wants = torch_attention(q, k, v, segments, dy, **form)
  largest = max(float(want.abs().max()) for want in wants)
  for got, want in zip(run(q, k, v, dy), wants, strict=True):
    close(got, want, scale=float(want.abs().max()) or largest)  # with a window of 1, q and k have no gradient


@pytest.mark.parametrize('form', ['plain', 'window over blocks', 'all', *(
  pytest.param(form, marks=pytest.mark.slow) for form in FORMS if form not in ('plain', 'window over blocks', 'all'))])
def test_attention_by_blocks_of_keys_matches_torch(monkeypatch, form):
  """What 'xla' does where the scores would be too many, also with rows and heads over a mesh."""
  monkeypatch.setattr(attention, 'MOST_SCORES', 0)
  monkeypatch.setattr(attention, 'BLOCK', 4)
  monkeypatch.setattr(context_attention, 'BLOCK', 4)
  T, form = 21, FORMS[form]
  q, k, v, dy = normal(0, 2, T, 6, 6), normal(1, 2, T, 2, 6), normal(2, 2, T, 2, 10), normal(3, 2, T, 6, 10)
  segments = packed(2, T)

  @jax.jit
  def run(q, k, v, dy):
    y, pull = jax.vjp(lambda *a: causal_attention(*a, segments, kernels='xla', **form), q, k, v)
    return y, *pull(dy)

  wants = torch_attention(q, k, v, segments, dy, **form)
  largest = max(float(want.abs().max()) for want in wants)
  with jax.set_mesh(make_mesh(Mesh(data=2, fsdp=2, tensor=2))):
    sharded = run(q, k, v, dy)
  for got, placed, want in zip(run(q, k, v, dy), sharded, wants, strict=True):
    close(got, want, scale=float(want.abs().max()) or largest)
    close(placed, want, scale=float(want.abs().max()) or largest)


@pytest.mark.parametrize('T, mesh', [(4_096, None), (4_001, None), (4_096, Mesh(data=8))])
def test_scores_of_a_long_text_never_exist(T, mesh):
  """9 heads of 4,096 tokens are 576 MiB of scores, on each of 8 devices too where there is one row for all of them. Of
  2,048 they are a quarter of that, several times over."""
  def temporaries(T):
    q, k = jax.ShapeDtypeStruct((1, T, 9, 4), jnp.float32), jax.ShapeDtypeStruct((1, T, 1, 4), jnp.float32)
    grad = jax.grad(lambda *a: causal_attention(*a, kernels='xla').sum(), (0, 1, 2))
    return jax.jit(grad).lower(q, k, k).compile().memory_analysis().temp_size_in_bytes

  with jax.set_mesh(make_mesh(mesh)) if mesh else contextlib.nullcontext():
    assert temporaries(T) < 2**28 < temporaries(2_048)


@pytest.mark.parametrize('kernels', KERNELS)
def test_attention_of_a_text_within_one_block(kernels):
  q, k, v = normal(0, 2, 8, 4, 6), normal(1, 2, 8, 2, 6), normal(2, 2, 8, 2, 6)
  for window in (None, 3):
    run = jax.jit(functools.partial(causal_attention, kernels=kernels, window=window))
    close(run(q, k, v), torch_attention(q, k, v, window=window))


def test_a_window_costs_no_more_than_its_width(small_blocks):
  """The products of a windowed text grow with its length, those of full attention with its square."""
  def flops(T, **form):
    a = jax.ShapeDtypeStruct((1, T, 1, 16), jnp.float32)
    grad = jax.grad(lambda *a: causal_attention(*a, kernels='cpu', **form).sum(), (0, 1, 2))
    return jax.jit(grad).lower(a, a, a).cost_analysis()['flops']

  assert flops(256, window=8) < 2.1 * flops(128, window=8) and flops(256) > 3.5 * flops(128)


@pytest.mark.parametrize('kernels', KERNELS)
@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize('form', [pytest.param('plain', marks=pytest.mark.slow),
                                  pytest.param('window', marks=pytest.mark.slow), 'all'])
def test_attention_keeps_the_dtype(small_blocks, kernels, dtype, form):
  form = FORMS[form]
  q, k, v = (jnp.asarray(normal(i, 1, 16, heads, 8), dtype) for i, heads in enumerate((4, 2, 2)))

  @jax.jit
  def run(q, k, v):
    y, pull = jax.vjp(lambda *a: causal_attention(*a, kernels=kernels, **form), q, k, v)
    return y, *pull(y)

  y, *gradients = run(q, k, v)
  assert [a.dtype for a in (y, *gradients)] == [dtype] * 4
  want = torch_attention(*(a.astype(jnp.float32) for a in (q, k, v)), **form)
  close(y, want, 2e-2 if dtype == jnp.bfloat16 else 1e-6)


@pytest.mark.parametrize('kernels', KERNELS)
@pytest.mark.parametrize('form', ['plain', pytest.param('window', marks=pytest.mark.slow), 'all'])
def test_documents_and_the_past_are_isolated_bitwise(small_blocks, kernels, form):
  form = FORMS[form]
  T, segments = 21, packed(2, 21)
  q, k, v = normal(0, 2, T, 4, 6), normal(1, 2, T, 2, 6), normal(2, 2, T, 2, 6)
  run = jax.jit(lambda *a: causal_attention(*a, segments, kernels=kernels, **form))
  before = np.asarray(run(q, k, v))
  other = (segments == 1)[:, :, None, None]  # everything in document 1 changes
  after = np.asarray(run(*(np.where(other, 10 * a + 1, a) for a in (q, k, v))))
  assert (before == after)[segments != 1].all() and not (before == after)[segments == 1].any()

  run = jax.jit(lambda *a: causal_attention(*a, kernels=kernels, **form))
  before, after = (np.asarray(run(q, k, np.where(np.arange(T)[:, None, None] < 13, v, c * v))) for c in (1, 3))
  assert (before == after)[:, :13].all() and not (before == after)[:, 13:].any()


@pytest.mark.parametrize('kernels', KERNELS)
def test_what_left_the_window_is_forgotten_bitwise(small_blocks, kernels):
  T, window = 21, 5
  q, k, v = normal(0, 2, T, 4, 6), normal(1, 2, T, 2, 6), normal(2, 2, T, 2, 6)
  run = jax.jit(lambda *a: causal_attention(*a, kernels=kernels, window=window))
  past = (np.arange(T) == 3)[:, None, None]
  before, after = np.asarray(run(q, k, v)), np.asarray(run(q, np.where(past, 9 * k, k), np.where(past, 9 * v, v)))
  changed = (before != after).any((0, 2, 3))
  assert changed.tolist() == [3 <= t < 3 + window for t in range(T)]


@pytest.mark.parametrize('kernels', KERNELS)
@pytest.mark.parametrize('form', ['plain', pytest.param('window', marks=pytest.mark.slow), 'all'])
def test_gradients_stay_in_a_document_bitwise(small_blocks, kernels, form):
  T, segments = 21, packed(2, 21)
  q, k, v = normal(0, 2, T, 4, 6), normal(1, 2, T, 2, 6), normal(2, 2, T, 2, 6)
  loss = lambda q, k, v: jnp.sum(jnp.where((segments == 1)[..., None, None],
                                           causal_attention(q, k, v, segments, kernels=kernels, **FORMS[form]), 0))
  for g in jax.jit(jax.grad(loss, (0, 1, 2)))(q, k, v):
    assert not np.asarray(g)[segments != 1].any()


@pytest.mark.parametrize('form', [pytest.param('plain', marks=pytest.mark.slow), 'all'])
def test_attention_dropout_drops_weights_and_keeps_the_mean(small_blocks, form):
  form = FORMS[form]
  q, k, v = normal(0, 1, 12, 4, 6), normal(1, 1, 12, 2, 6), np.ones((1, 12, 2, 3), np.float32)
  segments = packed(1, 12)
  run = jax.jit(lambda v, rng, rate: causal_attention(q, k, v, segments, dropout_rate=rate, dropout_rng=rng, **form),
                static_argnums=2)
  other = normal(2, 1, 12, 2, 3)
  close(run(other, jax.random.key(0), 1e-9), torch_attention(q, k, other, segments, **form))
  sums = jax.lax.map(lambda r: run(v, r, 0.5), jax.random.split(jax.random.key(1), 2000))
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


@pytest.mark.parametrize('spec, form', [(('batch', None, None, None), 'plain'), ((None, None, 'heads', None), 'plain'),
                                        (('batch', 'time', 'heads', None), 'plain'),
                                        (('batch', 'time', 'heads', None), 'all')])
def test_sharded_is_unsharded(small_blocks, spec, form):
  mesh = jax.make_mesh((2, 2, 2), ('batch', 'time', 'heads'), axis_types=(AxisType.Auto,) * 3)
  q, k, v, w = normal(0, 2, 20, 4, 6), normal(1, 2, 20, 2, 6), normal(2, 2, 20, 2, 6), normal(3, 4, 6, 4, 6)
  segments = packed(2, 20)
  attend = functools.partial(causal_attention, kernels='cpu', **FORMS[form])
  loss = lambda q, k, v, w: jnp.sum(linear(attend(q, k, v, segments), w, 2, 'cpu') ** 2)
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
from llm_jax.modules.kernels import blocked_attention, norm, ordering
from llm_jax.modules.kernels.attention import causal_attention
from llm_jax.modules.kernels.linear import linear
from llm_jax.objectives.cross_entropy import chunked_cross_entropy
blocked_attention.BLOCK = 4
r = np.random.default_rng(0)
n = lambda *s: r.standard_normal(s)
ids = np.array([[1, 1, 1, 2, 2, 2, 0], [1, 2, 2, 2, 3, 3, 3]])
check = lambda f, *a: check_grads(f, a, 1, ('rev',), atol=1e-6, rtol=1e-6, eps=1e-5)
check(lambda x, w: linear(x, w, 2, 'cpu'), n(2, 3, 2, 4), n(2, 4, 5))
x, s = n(2, 3, 6), n(6)
check(lambda x, s: norm.normalize(x, s, None, 1e-5, 'cpu'), x, s)
check(lambda x, s, b: norm.normalize(x, s, b, 1e-5, 'cpu'), x, s, n(6))
check(lambda a, b: ordering.elementwise(lambda a, b: jax.nn.silu(a) * b, a, b, kernels='cpu'), n(2, 5), n(2, 5))
for form in ({}, {'window': 3, 'soft_cap': 1.2, 'scale': 0.8}):
  attend = lambda q, k, v: causal_attention(q, k, v, ids, kernels='cpu', **form)
  check(jax.jit(attend), n(2, 7, 4, 6), n(2, 7, 2, 6), n(2, 7, 2, 5))
y, wt = r.integers(0, 11, (2, 7)), r.uniform(0, 2, (2, 7))
for kernels, cap in (('cpu', None), ('cpu', 2.0), ('xla', None), ('xla', 2.0)):
  loss = lambda x, w, wt: 3 * chunked_cross_entropy(x, w, y, wt, 0.1, 3, kernels, cap)[0]
  check(jax.jit(loss), n(2, 7, 5), n(11, 5), wt)
'''
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                        env={**os.environ, 'PYTHONPATH': str(pathlib.Path(__file__).parents[2])})
  assert done.returncode == 0, done.stderr[-2000:]
