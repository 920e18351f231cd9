"""The kernel for TPU, interpreted, against PyTorch in float64 and against the plain kernel on a mesh."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.config import presets
from llm_jax.config.run import Mesh
from llm_jax.modules.execution import Execution
from llm_jax.modules.kernels import flash_attention
from llm_jax.modules.kernels.attention import causal_attention
from llm_jax.modules.transformer import Transformer
from llm_jax.sharding.mesh import make_mesh
from tests.combinations import each_with_one
from tests.modules.references import close, normal, packed, torch_attention

FORMS = {
  'plain': {},
  'window': {'window': 50},
  'window over blocks': {'window': 200},
  'window of itself': {'window': 1},
  'all': {'window': 60, 'soft_cap': 1.5, 'scale': 0.6},
}
attend = functools.partial(causal_attention, kernels='tpu')


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
  monkeypatch.setattr(flash_attention, 'BLOCKS', (128,))


SIZES = ((4, 4, 16, 256, False), (6, 2, 16, 300, True), (4, 1, 24, 256, True))  # H, G, V, T, and whether in documents


@pytest.mark.parametrize('H, G, V, T, segmented, form', each_with_one(SIZES, FORMS))
def test_it_and_its_gradient_match_torch(H, G, V, T, segmented, form):
  form = FORMS[form]
  q, k, v, dy = normal(0, 2, T, H, 16), normal(1, 2, T, G, 16), normal(2, 2, T, G, V), normal(3, 2, T, H, V)
  segments = packed(2, T) if segmented else None

  @jax.jit
  def run(q, k, v, dy):
    y, pull = jax.vjp(lambda *a: attend(*a, segments, **form), q, k, v)
    return y, *pull(dy)

  wants = torch_attention(q, k, v, segments, dy, **form)
  largest = max(float(want.abs().max()) for want in wants)
  for got, want in zip(run(q, k, v, dy), wants, strict=True):
    close(got, want, 2e-6, scale=float(want.abs().max()) or largest)


@pytest.mark.parametrize('form', ['plain', 'all'])
def test_documents_and_the_past_are_isolated_bitwise(form):
  T, segments = 256, packed(2, 256)
  q, k, v = normal(0, 2, T, 4, 16), normal(1, 2, T, 2, 16), normal(2, 2, T, 2, 16)
  run = jax.jit(lambda *a: attend(*a, segments, **FORMS[form]))
  other = (segments == 1)[:, :, None, None]  # everything in document 1 changes
  before, after = np.asarray(run(q, k, v)), np.asarray(run(*(np.where(other, 10 * a + 1, a) for a in (q, k, v))))
  assert (before == after)[segments != 1].all() and not (before == after)[segments == 1].any()
  later = (np.arange(T) >= 130)[:, None, None]
  run = jax.jit(functools.partial(attend, **FORMS[form]))
  before, after = (np.asarray(run(q, k, np.where(later, c * v, v))) for c in (1, 3))
  assert (before == after)[:, :130].all() and not (before == after)[:, 130:].any()


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
def test_it_keeps_the_dtype(dtype):
  q, k, v = (jnp.asarray(normal(i, 1, 128, heads, 16), dtype) for i, heads in enumerate((4, 2, 2)))
  y, pull = jax.vjp(attend, q, k, v)
  assert [a.dtype for a in (y, *pull(y))] == [dtype] * 4
  close(y, torch_attention(*(a.astype(jnp.float32) for a in (q, k, v))), 2e-2 if dtype == jnp.bfloat16 else 1e-6)


@pytest.mark.parametrize('mesh', [Mesh(data=2, fsdp=2, tensor=2), Mesh(data=1, tensor=8),
                                  pytest.param(Mesh(fsdp=4, expert=2), marks=pytest.mark.slow)])
def test_a_model_on_a_mesh(mesh):
  """Rows and heads are split; where tensor=8 the 8 query heads are and the 2 key heads are not. With scan and remat."""
  config = presets.llama(d_model=64, num_layers=2, num_heads=8, num_kv_heads=2, d_ff=64, vocab_size=64)
  tokens, segments = np.random.default_rng(0).integers(0, 64, (8, 128)), packed(8, 128)
  params = jax.jit(Transformer(config).init)(jax.random.key(0), np.zeros((1, 1), np.int32))['params']

  def loss(params, kernels):
    model = Transformer(config, Execution(kernels=kernels, unroll=False, remat='block'))
    return (model.apply({'params': params}, tokens, segment_ids=segments) ** 2).mean()

  run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
  want = run(params, 'xla')
  with jax.set_mesh(make_mesh(mesh)):
    got = run(params, 'tpu')
    assert 'shard_map' in str(jax.make_jaxpr(loss, static_argnums=1)(params, 'tpu'))  # XLA cannot split it on TPU
  for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    close(g, e, 1e-5)


def test_rows_that_the_context_axis_does_not_cut_stay_whole():
  """12 tokens over 4 devices are no two chunks each: every device has all of them, though 4 divides 12."""
  q, k, v = normal(0, 2, 12, 4, 16), normal(1, 2, 12, 2, 16), normal(2, 2, 12, 2, 16)
  with jax.set_mesh(make_mesh(Mesh(context=4))):
    close(jax.jit(attend)(q, k, v), torch_attention(q, k, v))
