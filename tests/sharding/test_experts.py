"""Experts shared out over eight virtual devices: the same numbers as on one, and no device ever holds them all."""
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import paths
from llm_jax.batch import LanguageModelBatch
from llm_jax.config.errors import ConfigError
from llm_jax.config.model.architecture import (
  GLU,
  Architecture,
  Attention,
  Block,
  ClampedGLU,
  LatentAttention,
  MixtureOfExperts,
  RMSNorm,
  RoPE,
  SigmoidRouter,
  SoftmaxRouter,
)
from llm_jax.config.optimizers import AdamW
from llm_jax.config.run import Mesh
from llm_jax.config.schedules import Constant
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.language_model import LanguageModelObjective
from llm_jax.optim.optimizers import make_optimizer
from llm_jax.optim.schedules import make_schedule
from llm_jax.sharding.check import check_divides
from llm_jax.sharding.mesh import make_mesh
from llm_jax.sharding.rules import batch_sharding, param_shardings, state_shardings
from llm_jax.train.state import TrainState
from llm_jax.train.step import make_train_step

VOCAB, B, T, D, F, E = 64, 8, 12, 16, 24, 8
LATENT = LatentAttention(2, 8, 6, 4, 8, q_rank=12)
SIGMOID = Block(Attention(2), MixtureOfExperts(E, 3, GLU(F), SigmoidRouter(4, 2), GLU(12)), RMSNorm())
BIASED = ClampedGLU(F, limit=0.5, bias=True)
ROUTER = SoftmaxRouter(0.1, 0.1, bias=True)
SOFTMAX = Block(LATENT, MixtureOfExperts(E, 2, BIASED, ROUTER, capacity_factor=1.0), RMSNorm())
MODEL = Architecture(VOCAB, D, 3, prefix=(SOFTMAX,), pattern=(SIGMOID,), positions=RoPE(), norm=RMSNorm(),
                     tied_head=False, multi_token=(SIGMOID,))
TRUNK = dataclasses.replace(MODEL, multi_token=())


def batch():
  ids = np.random.default_rng(0).integers(0, VOCAB, (B, T + 1)).astype(np.int32)
  segments = np.ones((B, T), np.int32)
  segments[2, 7:], segments[5, 4:] = 2, 0
  positions = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
  return LanguageModelBatch(ids[:, :-1], ids[:, 1:], (segments > 0).astype(np.float32), positions, segments)


def shapes(config):
  return jax.eval_shape(Transformer(config).init, jax.random.key(0), np.zeros((1, 1), np.int32))['params']


@functools.cache
def params():
  random = np.random.default_rng(0)
  return paths.map_named(
    lambda path, leaf: np.float32(path.endswith('scale') + 0.2 * random.standard_normal(leaf.shape)), shapes(TRUNK))


@functools.cache
def one_step(mesh_config, kernels='xla'):
  """Metrics and parameters after a step, and the compiled program. None: one device."""
  objective = LanguageModelObjective(Transformer(TRUNK, Execution(unroll=False, kernels=kernels)))
  optimizer = make_optimizer(AdamW(eps=1e-3), params())  # of the gradient's size, so that rounding stays rounding
  step = make_train_step(objective, optimizer, make_schedule(Constant(0.01), 9))
  state = TrainState.create(jax.tree.map(jnp.asarray, params()), optimizer, ema=False)
  if mesh_config is None:
    state, metrics = jax.jit(step)(state, None, batch())
    return jax.device_get((metrics, state.params)), None
  mesh = make_mesh(mesh_config)
  shardings = state_shardings(state, state.params, mesh)
  with jax.set_mesh(mesh):
    inputs = jax.device_put(state, shardings), None, jax.device_put(batch(), batch_sharding(mesh))
    compiled = jax.jit(step, out_shardings=(shardings, None)).lower(*inputs).compile()
    state, metrics = compiled(*inputs)
  return jax.device_get((metrics, state.params)), compiled.as_text()


@pytest.mark.parametrize('mesh, kernels', (
  pytest.param(Mesh(data=4, expert=2), 'xla', marks=pytest.mark.slow),
  (Mesh(data=1, fsdp=2, expert=4), 'xla'),
  pytest.param(Mesh(data=1, fsdp=2, expert=4), 'cpu', marks=pytest.mark.slow),
  pytest.param(Mesh(data=1, tensor=2, context=2, expert=2), 'xla', marks=pytest.mark.slow),
), ids=str)
def test_expert_parallel_is_one_device(mesh, kernels):
  """A whole training step: metrics, every parameter, the balance biases exactly."""
  (metrics, got), _ = one_step(mesh, kernels)
  (want_metrics, want), _ = one_step(None)
  for name in want_metrics:
    np.testing.assert_allclose(metrics[name], want_metrics[name], rtol=1e-5, err_msg=name)
  for (path, a), (_, b) in zip(paths.leaves(got), paths.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=0 if path.endswith('balance/bias') else 1e-5, err_msg=path)


def test_no_device_gathers_experts():
  """The compiled program has no array of all experts' matrices: each device has E / 4 of them. Tokens are sent."""
  _, program = one_step(Mesh(data=1, fsdp=2, expert=4), 'xla')
  arrays = {tuple(map(int, dims.split(','))) for dims in re.findall(r'f32\[([\d,]+)\]', program)}
  assert (E // 4, D, F) in arrays
  assert not [s for s in arrays if s[-3:] in ((E, D, F), (E, F, D), (E, D // 2, F), (E, F, D // 2))]
  assert 'all-to-all' in program


def test_parameters_are_split():
  found = dict(paths.leaves(param_shardings(shapes(MODEL), make_mesh(Mesh(data=1, fsdp=2, tensor=2, expert=2)))))
  spec = {path.removeprefix('prefix_0/'): tuple(s.spec) for path, s in found.items() if path.startswith('prefix_0')}
  assert spec['feed_forward/experts/gate/w'] == ('expert', 'fsdp', 'tensor')
  assert spec['feed_forward/experts/down/w'] == ('expert', 'tensor', 'fsdp')
  assert spec['feed_forward/experts/up/b'] == ('expert', 'tensor')
  assert spec['feed_forward/experts/down/b'] == ('expert', None)
  assert spec['feed_forward/router/w'] == ('fsdp', None) and spec['feed_forward/router/b'] == (None,)
  assert spec['attention/query_down/w'] == ('fsdp', None) and spec['attention/kv_down/w'] == ('fsdp', None)
  assert spec['attention/query_up/w'] == spec['attention/value_up/w'] == ('fsdp', 'tensor', None)
  assert spec['attention/key_rotary/w'] == ('fsdp', None) and spec['attention/kv_norm/scale'] == (None,)
  assert tuple(found['blocks/block_0/feed_forward/experts/up/w'].spec) == (None, 'expert', 'fsdp', 'tensor')
  assert tuple(found['blocks/block_0/feed_forward/balance/bias'].spec) == (None, None)
  assert tuple(found['multi_token_0/project/w'].spec) == ('fsdp', None)
  assert tuple(found['multi_token_0/norm/scale'].spec) == (None,)


@pytest.mark.parametrize('mesh, says', (
  (Mesh(data=1, expert=3), 'mesh.expert = 3: mesh expert=3 does not divide num_experts=8'),
  (Mesh(data=1, tensor=5), 'tensor=5 does not divide vocab_size'),
  (Mesh(data=1, fsdp=16), 'mesh fsdp=16 does not divide kv_rank=8'),
  (Mesh(data=2, expert=8), 'data x fsdp x expert = 16 does not divide the 8 sequences'),
), ids=str)
def test_mesh_that_does_not_divide_is_refused(mesh, says):
  with pytest.raises(ConfigError, match=says):
    check_divides(MODEL, mesh, batch_size=B, seq_len=T)


def test_mesh_that_divides():
  check_divides(MODEL, Mesh(data=1, expert=8), batch_size=B, seq_len=T)
  check_divides(MODEL, Mesh(data=1, fsdp=2, tensor=2, expert=2), batch_size=B, seq_len=T)
