"""Layers dealt out to the stages of a pipeline: the same loss and gradient as on one device."""
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm_jax import paths
from llm_jax.config import presets
from llm_jax.config.errors import ConfigError
from llm_jax.config.model.architecture import GLU, Architecture, Attention, Block, RMSNorm, RoPE, SandwichBlock
from llm_jax.config.run import Mesh
from llm_jax.modules.execution import Execution
from llm_jax.modules.pipeline import from_pieces, into_pieces
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.language_model import LanguageModelObjective
from llm_jax.sharding.check import check_divides
from llm_jax.sharding.collectives import collectives_of
from llm_jax.sharding.mesh import make_mesh
from llm_jax.sharding.rules import batch_sharding, state_shardings
from llm_jax.sharding.ticks import bubble
from llm_jax.train.state import TrainState
from llm_jax.train.step import make_train_step
from tests.sharding.packed_rows import packed_batch

ROWS, TIME, VOCAB = 16, 16, 64
FAST = {'xla_backend_optimization_level': 0}  # compiles faster

LOCAL = SandwichBlock(Attention(4, 2, head_dim=6, window=5, soft_cap=2.0, scale=0.5), GLU(48), RMSNorm())
GLOBAL = SandwichBlock(Attention(4, 2, head_dim=6, positions=RoPE(theta=500.0)), GLU(48), RMSNorm())
MODELS = {
  'llama': presets.llama(32, 4, 8, num_kv_heads=2, d_ff=64, vocab_size=VOCAB),
  'gemma': Architecture(VOCAB, 32, 9, (LOCAL, GLOBAL), prefix=(LOCAL,), positions=RoPE(), norm=RMSNorm(),
                        tied_head=True, multi_token=(Block(Attention(4, 2), GLU(40), RMSNorm()),)),
  'experts': presets.deepseek(32, 5, 1, 4, q_rank=16, kv_rank=16, nope_dim=8, rope_dim=4, v_dim=8, d_ff=64,
                              expert_d_ff=16, num_experts=8, top_k=2, vocab_size=VOCAB),
}


def batch():
  return packed_batch(ROWS, TIME, VOCAB)


@functools.cache
def params(name):
  init = jax.jit(Transformer(MODELS[name], Execution(unroll=False)).init, compiler_options=FAST)
  params = jax.device_get(init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params'])
  return jax.tree.map(lambda p: p * 3 if p.ndim > 1 else p, params)  # scores far from equal


@functools.cache
def step_of(name, mesh, remat='none', pieces=None, kernels='xla'):
  """The compiled step, the mesh, and the loss and gradient that the step gives. mesh: None: one device."""
  keep = optax.trace(decay=0.0)
  execution = Execution(remat=remat, kernels=kernels, unroll=False, pipeline_microbatches=pieces)
  objective = LanguageModelObjective(Transformer(MODELS[name], execution))
  step = jax.jit(make_train_step(objective, keep, lambda step: 0.0, clip_norm=None))
  state, rows = TrainState.create(params(name), keep, ema=False), batch()
  if mesh is None:
    compiled = step.lower(state, None, rows).compile(compiler_options=FAST)
  else:
    mesh = make_mesh(mesh, jax.devices()[:math.prod(mesh.sizes.values())])
    with jax.set_mesh(mesh):
      state = jax.device_put(state, state_shardings(state, state.params, mesh))
      rows = jax.device_put(rows, batch_sharding(mesh))
      compiled = step.lower(state, None, rows).compile(compiler_options=FAST)
  state, metrics = compiled(state, None, rows)
  return compiled, mesh, float(metrics['loss']), jax.device_get(state.opt_state.trace)


SLOW = pytest.mark.slow


@pytest.mark.parametrize('name, mesh, remat, pieces', (
  ('llama', Mesh(data=1, pipeline=4), 'block', 8),
  pytest.param('gemma', Mesh(data=1, pipeline=2, fsdp=2), 'dots', 2, marks=SLOW),
  pytest.param('experts', Mesh(data=1, pipeline=2, expert=2, fsdp=2), 'block', None, marks=SLOW),
  pytest.param('llama', Mesh(data=2, pipeline=2, fsdp=2), 'block', None, marks=SLOW),
  pytest.param('llama', Mesh(data=1, pipeline=4, tensor=2), 'block', 4, marks=SLOW),
  pytest.param('llama', Mesh(data=1, pipeline=2, fsdp=2, tensor=2), 'none', 4, marks=SLOW),
  pytest.param('llama', Mesh(data=1, pipeline=2, context=4), 'block', 4, marks=SLOW),
  pytest.param('gemma', Mesh(data=1, pipeline=4), 'block', None, marks=SLOW),
  pytest.param('gemma', Mesh(data=1, pipeline=2, tensor=2, context=2), 'none', 4, marks=SLOW),
  pytest.param('experts', Mesh(data=2, pipeline=2, expert=2), 'none', 2, marks=SLOW),
  pytest.param('experts', Mesh(data=1, pipeline=2, tensor=2, expert=2), 'none', 2, marks=SLOW),
), ids=str)
def test_stages_compute_what_one_device_computes(name, mesh, remat, pieces):
  """A whole training step: the loss, and the gradient as the optimizer gets it."""
  compiled, placed, loss, gradient = step_of(name, mesh, remat, pieces)
  _, _, want_loss, want = step_of(name, None)
  assert abs(loss - want_loss) <= 1e-6 * want_loss
  for (path, a), (_, b) in zip(paths.leaves(gradient), paths.leaves(want), strict=True):
    assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b), path
    assert np.linalg.norm(b) > 0 or path.endswith('balance/bias'), path  # which has no gradient
  kinds = {(each.kind, each.axes) for each in collectives_of(compiled.as_text(), placed.shape)}
  assert ('collective-permute', ('pipeline',)) in kinds  # it was a pipeline


def test_rows_keep_their_places():
  """From rows to pieces and back, on devices that share rows."""
  mesh = make_mesh(Mesh(data=2, fsdp=2, pipeline=2))
  rows = jnp.arange(48).reshape(24, 2)
  with jax.set_mesh(mesh):
    pieces = into_pieces(rows, 2)
    np.testing.assert_array_equal(from_pieces(pieces), rows)
  # Each stage holds half of the rows, three on each of its four devices, and one piece of them.
  np.testing.assert_array_equal(pieces[0, :, 0] // 2, range(12))
  with jax.set_mesh(mesh):  # two pieces, to which each device gives some
    np.testing.assert_array_equal(into_pieces(rows[:16], 4)[0, :, 0] // 2, [0, 2, 4, 6])


def test_rows_that_cannot_be_cut_run_through_all_layers():
  """Such as those of an evaluation: the same numbers, without a pipeline."""
  model = Transformer(MODELS['llama'], Execution(unroll=False))
  tokens = batch().tokens[:3]
  want = model.apply({'params': params('llama')}, tokens)
  with jax.set_mesh(make_mesh(Mesh(data=1, pipeline=4), jax.devices()[:4])):
    np.testing.assert_allclose(jax.jit(model.apply)({'params': params('llama')}, tokens), want, atol=2e-5)


@pytest.mark.parametrize('model, mesh, rows, line', (
  (presets.llama(32, 6, 4, vocab_size=64), Mesh(1, pipeline=4), 32,
   'mesh.pipeline = 4: mesh pipeline=4 does not divide the repeats of the layers=6'),
  (presets.llama(32, 4, 4, vocab_size=64), Mesh(1, pipeline=4), 12,
   'mesh.pipeline_microbatches = 8: 8 pieces on each of 1 groups of devices do not divide the 12 sequences of a '
   'microbatch: use 16 sequences, or fewer pieces'),
  (presets.llama(32, 4, 4, vocab_size=64, dropout=0.1), Mesh(1, pipeline=2), 16, 'draw no dropout'),
  (presets.mixtral(32, 4, 4, 2, 64, vocab_size=64), Mesh(1, pipeline=2), 16, "balance_over='step'"),
), ids=('layers', 'rows', 'dropout', 'router'))
def test_what_a_pipeline_cannot_do_is_refused(model, mesh, rows, line):
  with pytest.raises(ConfigError, match=re.escape(line)):
    check_divides(model, mesh, rows, 16)


def test_a_mesh_of_a_pipeline():
  with pytest.raises(ConfigError, match='pipeline_microbatches = 6: use a multiple of pipeline=4'):
    Mesh(pipeline=4, pipeline_microbatches=6)
  with pytest.raises(ConfigError, match='pipeline = -1: use a number of stages'):
    Mesh(data=1, pipeline=-1)
  assert Mesh(1, pipeline=4).pieces == 8 and Mesh().pieces == 1
  assert bubble(4, 8) == pytest.approx(3 / 11) and bubble(1, 1) == 0
