"""Rows split over devices: the same loss and gradient as on one, from keys and values that are gathered or go round."""
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm_jax import paths
from llm_jax.config import presets
from llm_jax.config.model.architecture import (
  GLU,
  Architecture,
  Attention,
  Block,
  LatentAttention,
  LongRoPEScaling,
  MixtureOfExperts,
  RMSNorm,
  RoPE,
  SandwichBlock,
  SoftmaxRouter,
)
from llm_jax.config.run import Mesh
from llm_jax.modules.execution import Execution
from llm_jax.modules.kernels.attention import causal_attention
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.chunks import join, split
from llm_jax.objectives.language_model import LanguageModelObjective
from llm_jax.sharding.context_split import WHOLE, ContextSplit, context_split
from llm_jax.sharding.mesh import make_mesh
from llm_jax.sharding.rules import batch_sharding, replicated
from llm_jax.train.state import TrainState
from llm_jax.train.step import make_train_step
from tests.sharding.packed_rows import packed_batch

ROWS, TIME, VOCAB = 4, 32, 64
FAST = {'xla_backend_optimization_level': 0}  # compiles faster

LONGROPE = LongRoPEScaling((1.0, 1.5), (2.0, 6.0), 4.0, original_length=9)
GEMMA = SandwichBlock(Attention(4, 2, head_dim=6, window=7, soft_cap=2.0, scale=0.5, sinks=True, rotary_dim=4,
                                positions=RoPE(scaling=LONGROPE)), GLU(48), RMSNorm())
LATENT = Block(LatentAttention(4, kv_rank=12, nope_dim=6, rope_dim=4, v_dim=5),
               MixtureOfExperts(4, 2, GLU(20), SoftmaxRouter(0.5, 0.25), capacity_factor=1.0), RMSNorm())
MODELS = {
  'llama': presets.llama(32, 2, 8, num_kv_heads=2, d_ff=64, vocab_size=VOCAB),
  'others': Architecture(VOCAB, 32, 1, (GEMMA,), positions=RoPE(), norm=RMSNorm(), tied_head=False,
                         multi_token=(LATENT,)),
}


def batch(kind):
  """'packed': chunks cut the documents of a row anywhere. 'whole': one fills the row."""
  return packed_batch(ROWS, TIME, VOCAB, is_whole=kind == 'whole')


@functools.cache
def params(name):
  init = jax.jit(Transformer(MODELS[name], Execution(unroll=False)).init)
  params = jax.device_get(init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params'])
  return jax.tree.map(lambda p: p * 3 if p.ndim > 1 else p, params)  # scores far from equal


@functools.cache
def compiled(name, mesh, form='gather'):
  """One training step, whose optimizer only keeps the gradient; and the mesh. None: one device, no mesh."""
  keep = optax.trace(decay=0.0)
  execution = Execution(kernels='xla', unroll=False, context_attention=form)
  objective = LanguageModelObjective(Transformer(MODELS[name], execution))
  step = jax.jit(make_train_step(objective, keep, lambda step: 0.0, clip_norm=None))
  state, rows = TrainState.create(params(name), keep, ema=False), batch('packed')
  if mesh is None:
    return step.lower(state, None, rows).compile(compiler_options=FAST), None
  mesh = make_mesh(mesh)
  with jax.set_mesh(mesh):
    lowered = step.lower(jax.device_put(state, replicated(mesh)), None, jax.device_put(rows, batch_sharding(mesh)))
    return lowered.compile(compiler_options=FAST), mesh


def loss_and_gradient(name, kind, *how):
  step, mesh = compiled(name, *how)
  state, rows = TrainState.create(params(name), optax.trace(decay=0.0), ema=False), batch(kind)
  if mesh is not None:
    state, rows = jax.device_put(state, replicated(mesh)), jax.device_put(rows, batch_sharding(mesh))
  state, metrics = step(state, None, rows)
  return float(metrics['loss']), jax.device_get(state.opt_state.trace)


@pytest.mark.parametrize('kind', ('packed', 'whole'))
@pytest.mark.parametrize('name, mesh, form', (
  pytest.param('llama', Mesh(context=2), 'gather', marks=pytest.mark.slow),
  pytest.param('llama', Mesh(context=2), 'ring', marks=pytest.mark.slow),
  ('llama', Mesh(context=4), 'gather'),
  ('llama', Mesh(context=4), 'ring'),
  # tensor does not divide the key/value heads
  pytest.param('llama', Mesh(data=1, tensor=4, context=2), 'ring', marks=pytest.mark.slow),
  pytest.param('others', Mesh(data=1, fsdp=2, context=4), 'gather', marks=pytest.mark.slow),
  ('others', Mesh(data=2, tensor=2, context=2), 'ring'),
), ids=str)
def test_split_rows_are_whole_rows(name, mesh, form, kind):
  """A whole training step: the loss, and the gradient as the optimizer gets it."""
  loss, gradient = loss_and_gradient(name, kind, mesh, form)
  want_loss, want = loss_and_gradient(name, kind, None)
  assert abs(loss - want_loss) <= 1e-6 * want_loss
  for (path, a), (_, b) in zip(paths.leaves(gradient), paths.leaves(want), strict=True):
    assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b) and np.linalg.norm(b) > 0, path


def sizes_of(op, name, mesh, form):
  """Elements of each result of a collective."""
  text = compiled(name, mesh, form)[0].as_text()
  results = re.findall(rf'= ([^=]*?) {op}(?:-start)?\(', text)
  shapes = [shape for result in results for shape in re.findall(r'f32\[([\d,]*)\]', result)]
  return [int(np.prod([int(n) for n in shape.split(',') if n])) for shape in shapes]


def test_only_gather_gathers():
  """Of [rows, time, heads, size] all of time is on a device in one form, and in the other nothing is gathered."""
  mesh, keys = Mesh(context=4), ROWS // 2 * TIME * 2 * 4  # of the rows of one device
  assert max(sizes_of('all-gather', 'llama', mesh, 'gather')) >= keys // 2  # heads and tails apart
  assert sizes_of('collective-permute', 'llama', mesh, 'ring').count(keys // 4) >= 4  # keys, values; their gradients
  assert not sizes_of('all-gather', 'llama', mesh, 'ring')


@pytest.mark.parametrize('devices', (2, 4, 8))
def test_chunks_from_the_head_and_the_tail(devices):
  mesh = make_mesh(Mesh(context=devices))
  x = np.broadcast_to(np.arange(16), (8, 16)).astype(np.int32)
  with jax.set_mesh(mesh):
    s = context_split(16, 'ring')
    placed = jax.jit(s.arrange)(jax.device_put(x, batch_sharding(mesh)))
    back = jax.jit(s.restore)(placed)
  assert s == ContextSplit(devices, 'ring')
  np.testing.assert_array_equal(back, x)
  chunks = np.arange(16).reshape(2 * devices, -1)
  want = np.concatenate([chunks[[i, 2 * devices - 1 - i]].ravel() for i in range(devices)])
  np.testing.assert_array_equal(placed, np.broadcast_to(want, x.shape))
  local = {tuple(shard.data[0].tolist()) for shard in placed.addressable_shards}
  assert local == {tuple(part) for part in want.reshape(devices, -1).tolist()}


def test_what_does_not_cut_stays_whole():
  with jax.set_mesh(make_mesh(Mesh(context=4))):
    assert context_split(12, 'gather') == context_split(1, 'ring') == WHOLE
  assert context_split(16, 'gather') == WHOLE


@pytest.mark.parametrize('form', ('gather', 'ring'))
def test_without_documents(form):
  """As a model without segment_ids calls it, in bfloat16, values of another size: within rounding of float32."""
  random = np.random.default_rng(0)
  q, k, v = (random.standard_normal(s).astype(jnp.bfloat16) for s in ((2, 16, 4, 8), (2, 16, 2, 8), (2, 16, 2, 6)))
  want = causal_attention(*(x.astype(np.float32) for x in (q, k, v)), kernels='xla', window=9)
  with jax.set_mesh(make_mesh(Mesh(context=4))):
    s = context_split(16, form)
    run = jax.jit(lambda *qkv: s.restore(causal_attention(*map(s.arrange, qkv), split=s, window=9)))
    got = run(q, k, v)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(got.astype(np.float32), want, atol=0.02)


def test_the_loss_takes_a_part_of_each_device_at_a_time():
  """No device gets what another holds, and padding goes again."""
  x = np.arange(2 * 24 * 3, dtype=np.float32).reshape(2, 24, 3)
  mesh = make_mesh(Mesh(context=4))
  with jax.set_mesh(mesh):
    placed = jax.device_put(x, batch_sharding(mesh))
    cut = jax.jit(lambda a: split(16, a)[0])
    pieces, text = cut(placed), cut.lower(placed).compile().as_text()
    np.testing.assert_array_equal(jax.jit(lambda a: join(a, 24))(pieces), x)
  assert pieces.shape == (2, 2, 16, 3) and not re.search(r'all-gather|all-to-all|collective-permute', text)
  np.testing.assert_array_equal(pieces[0, :, :4], x[:, :4])
  np.testing.assert_array_equal(pieces[0, :, 4:8], x[:, 6:10])


def test_dropout_is_not_split():
  """Attention weights are dropped in a kernel that has them: the same ones as on one device."""
  config = presets.llama(32, 1, 4, d_ff=32, vocab_size=VOCAB, dropout=0.5)
  model = Transformer(config, Execution(kernels='xla', unroll=False))
  variables = {'params': jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']}
  run = jax.jit(lambda v, t: model.apply(v, t, rngs={'dropout': jax.random.key(1)}))
  tokens = batch('whole').tokens
  want = run(variables, tokens)
  with jax.set_mesh(make_mesh(Mesh(context=4))):
    np.testing.assert_allclose(run(variables, tokens), want, atol=1e-5)
