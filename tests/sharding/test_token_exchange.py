"""Tokens sent to the devices of their experts: the numbers of one device, whatever the router chose."""
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from llm_jax import paths
from llm_jax.batch import LanguageModelBatch
from llm_jax.config.model.architecture import (
  GLU,
  Architecture,
  Attention,
  Block,
  MixtureOfExperts,
  RMSNorm,
  RoPE,
  SigmoidRouter,
  SoftmaxRouter,
)
from llm_jax.config.run import Mesh
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.language_model import LanguageModelObjective
from llm_jax.sharding import rounds
from llm_jax.sharding.mesh import make_mesh
from llm_jax.sharding.rounds import balanced_rounds, room_in_round
from llm_jax.sharding.rules import batch_sharding, param_shardings
from llm_jax.sharding.token_exchange import exchange
from llm_jax.train.step import accumulate

E, D, DEVICES, TOKENS, CHOSEN = 8, 4, 4, 24, 3  # of a device


# ------------------------------------------------------------------------------------------------ the exchange alone
def each_tokens_matrix(x_BTD, expert_BTX, weight_BTX, weights):
  """The weighted sum of products with each token's matrices, one expert after the other."""
  per_expert = [(jnp.where(expert_BTX == e, weight_BTX, 0).sum(-1, keepdims=True) * jnp.tanh(x_BTD @ w_DD))
                for e, w_DD in enumerate(weights['up/w'])]
  return sum(per_expert)


def choices():
  """By name, the experts of each token of all devices."""
  random = np.random.default_rng(0)
  shape = DEVICES * TOKENS, CHOSEN
  even = np.argsort(random.random((shape[0], E)), axis=1)[:, :CHOSEN]
  return {
    'even': even,
    'all to one': np.full(shape, 5),  # even thrice the same
    'of one device': np.broadcast_to([[4, 5, E]], shape),
    'from one device': np.where(np.arange(shape[0])[:, None] < TOKENS, even % 2, E),
    'some to none': np.where(random.random(shape) < 0.4, random.choice([E, E + 3, -1], shape), even),
    'none': np.full(shape, E),
  }


@pytest.mark.parametrize('name', choices())
def test_exchange_is_one_device(name, monkeypatch):
  """Values and all gradients, also where a device is sent many times its share."""
  random = np.random.default_rng(1)
  expert = choices()[name].astype(np.int32)
  x, direction = random.standard_normal((2, len(expert), D)).astype(np.float32)
  weight = random.random(expert.shape).astype(np.float32)
  w = random.standard_normal((E, D, D)).astype(np.float32)
  monkeypatch.setattr(rounds, 'LEAST_ROWS', 9)  # so that an even choice takes several rounds
  assert balanced_rounds(TOKENS * CHOSEN, E // DEVICES) == 4

  def shared(x, weight, w):
    local = lambda x, expert, weight, w: exchange(each_tokens_matrix, x, expert, weight, {'up/w': w}, 'expert')
    split = PartitionSpec('expert')
    return jax.shard_map(local, in_specs=(split,) * 4, out_specs=split, check_vma=False)(x, expert, weight, w)

  def alone(x, weight, w):
    return each_tokens_matrix(x[None], expert[None], weight[None], {'up/w': w})[0]

  def result(run):
    value, transpose = jax.vjp(run, x, weight, w)
    return value, transpose(direction)

  want = jax.jit(functools.partial(result, alone))()
  with jax.set_mesh(make_mesh(Mesh(1, expert=DEVICES), jax.devices()[:DEVICES])):
    got = jax.jit(functools.partial(result, shared))()
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
  assert (np.abs(want[0]).max() > 0) == (name != 'none')


@pytest.mark.parametrize('copies, own_experts, devices', ((65_536, 1, 8), (65_536, 16, 16), (3, 1, 8), (1_000, 4, 2)))
def test_an_even_choice_fits_into_its_rounds(copies, own_experts, devices):
  """With half a round to spare."""
  number = balanced_rounds(copies, own_experts)
  room = room_in_round(copies, own_experts, devices)
  share = copies / devices
  assert number * room >= share * (1 + 0.5 / number)
  assert number * room <= share * (1 + 0.5 / number) + number * 16


# ------------------------------------------------------------------------------------------------ of a whole model
VOCAB, ROWS, TIME, WIDTH, INNER = 64, 8, 12, 16, 24
MIXTRAL = Block(Attention(2), MixtureOfExperts(E, 2, GLU(INNER), SoftmaxRouter(0.02)), RMSNorm())
DEEPSEEK = Block(Attention(2), MixtureOfExperts(E, 3, GLU(INNER), SigmoidRouter(4, 2), GLU(INNER)), RMSNorm())


def batch():
  """With padding, whole rows of it too."""
  ids = np.random.default_rng(0).integers(0, VOCAB, (ROWS, TIME + 1)).astype(np.int32)
  segments = np.ones((ROWS, TIME), np.int32)
  segments[2, 7:], segments[5, 4:], segments[6] = 0, 2, 0
  positions = np.broadcast_to(np.arange(TIME, dtype=np.int32), (ROWS, TIME))
  return LanguageModelBatch(ids[:, :-1], ids[:, 1:], (segments > 0).astype(np.float32), positions, segments)


MODEL = Transformer(Architecture(VOCAB, WIDTH, 2, prefix=(MIXTRAL,), pattern=(DEEPSEEK,), positions=RoPE(),
                                 norm=RMSNorm(), tied_head=False),
                    Execution(unroll=False, kernels='xla', remat='block'))


@functools.cache
def params():
  """Routers and balance biases are large, so that the experts are chosen unevenly."""
  shapes = jax.eval_shape(MODEL.init, jax.random.key(0), np.zeros((1, 1), np.int32))['params']
  random = np.random.default_rng(0)
  scale = lambda path: 1.0 if 'router' in path or 'balance' in path else 0.2
  return paths.map_named(lambda path, leaf: np.float32(
    path.endswith('scale') + scale(path) * random.standard_normal(leaf.shape)), shapes)


def gradient(mesh=None):
  """Of the summed loss, the loss, and the compiled program."""
  objective = LanguageModelObjective(MODEL)
  function = jax.jit(lambda params, batch: accumulate(objective, params, None, batch, jax.random.key(0), 1))
  arguments = params(), batch()
  if mesh is None:
    grads, loss = function(*arguments)
    return jax.device_get((grads, loss.total)), None
  with jax.set_mesh(mesh):
    placed = jax.device_put(arguments, (param_shardings(arguments[0], mesh), batch_sharding(mesh)))
    compiled = function.lower(*placed).compile()
    grads, loss = compiled(*placed)
  return jax.device_get((grads, loss.total)), compiled.as_text()


@functools.cache
def of_one_device():
  return gradient()[0]


@pytest.mark.parametrize('mesh', (
  Mesh(1, expert=8), pytest.param(Mesh(1, 2, expert=4), marks=pytest.mark.slow), Mesh(2, 1, 2, expert=2)), ids=str)
def test_loss_and_gradients_are_those_of_one_device(mesh):
  (got, total), text = gradient(make_mesh(mesh))
  want, want_total = of_one_device()
  assert abs(total - want_total) <= 1e-6 * abs(want_total)
  for (path, a), (_, b) in zip(paths.leaves(got), paths.leaves(want), strict=True):
    assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max(), path
  arrays = {tuple(map(int, dims.split(','))) for dims in re.findall(r'f32\[([\d,]+)\]', text)}
  rows = {shape[0] for shape in arrays if len(shape) == 2 and shape[1] == INNER // mesh.tensor}
  copies = ROWS * TIME * 3 // (mesh.data * mesh.fsdp * mesh.expert)
  in_a_round = mesh.expert * room_in_round(copies, E // mesh.expert, mesh.expert)
  assert in_a_round in rows and max(rows) <= max(in_a_round, E * WIDTH)  # never the copies of other devices
