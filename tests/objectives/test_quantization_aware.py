"""Training for quantised weights: the loss of the stored model, and a gradient as if it had been trained itself."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import qwix

from llm_jax import paths
from llm_jax.batch import LanguageModelBatch
from llm_jax.config.objectives import LanguageModel
from llm_jax.config.quantization import QuantizationAware
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.modules.weight_storage import expanded, stored
from llm_jax.objectives.language_model import LanguageModelObjective
from llm_jax.objectives.quantization_aware import QuantizationAwareObjective
from tests.modules import decoders

CONFIG = decoders.decoder((decoders.LLAMA,), 2)
MODEL = Transformer(CONFIG, Execution(kernels='xla', unroll=False))
OBJECTIVE = LanguageModelObjective(MODEL, LanguageModel())


def batch(seed=0):
  """Text in which each token decides the next."""
  first = np.random.default_rng(seed).integers(0, decoders.VOCAB, (8, 1))
  text = (first + 7 * np.arange(17)) % decoders.VOCAB
  ones = np.ones((8, 16))
  return LanguageModelBatch(
    tokens=text[:, :-1].astype(np.int32), targets=text[:, 1:].astype(np.int32), weights=ones.astype(np.float32),
    positions=np.tile(np.arange(16, dtype=np.int32), (8, 1)), segment_ids=ones.astype(np.int32))


def as_stored(params, kind):
  """Every parameter as it would be read again; what is no matrix of a block stays in float32."""
  flat = paths.flat(params)
  kept = expanded({path: stored(path, leaf, kind) for path, leaf in flat.items() if path.startswith('blocks/')})
  return paths.nest({**flat, **{path: leaf for path, leaf in paths.flat(kept).items() if path.endswith('/w')}})


def total(objective, params, data):
  return objective(params, None, data, None).total


@pytest.mark.parametrize('kind', ('int8', 'int4', 'nf4'))
def test_loss_and_gradient_are_those_of_the_stored_model(kind):
  params = jax.tree.map(jnp.asarray, decoders.make_params(CONFIG))
  aware = QuantizationAwareObjective.of(OBJECTIVE, QuantizationAware(kind))
  value, gradient = jax.jit(jax.value_and_grad(functools.partial(total, aware)))(params, batch())
  want, want_gradient = jax.jit(jax.value_and_grad(functools.partial(total, OBJECTIVE)))(
    as_stored(params, kind), batch())
  np.testing.assert_allclose(value, want, rtol=1e-6)
  for (path, one), (_, other) in zip(paths.leaves(gradient), paths.leaves(want_gradient), strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max(), err_msg=path)


def test_a_straight_through_gradient_is_qwix_s():
  w = jnp.asarray(np.random.default_rng(0).standard_normal((64, 6)), jnp.float32)
  x = jnp.asarray(np.random.default_rng(1).standard_normal((5, 64)), jnp.float32)

  def theirs(w):
    rounded = qwix.dequantize(qwix.quantize(w, 'int8', channelwise_axes=(1,)))
    return jnp.sin(x @ (w + jax.lax.stop_gradient(rounded - w))).sum()

  def ours(w):
    path = 'blocks/block_0/feed_forward/up/w'
    aware = QuantizationAwareObjective.of(OBJECTIVE, QuantizationAware('int8'))
    return jnp.sin(x @ paths.flat(aware.quantized({path: w[None]}))[path][0]).sum()

  np.testing.assert_allclose(jax.grad(ours)(w), jax.grad(theirs)(w), rtol=1e-5, atol=1e-6)


def test_it_learns_what_rounding_afterwards_loses():
  """After the same steps the stored model has a lower loss than one that was trained in float32 and then stored."""
  losses = {}
  aware = QuantizationAwareObjective.of(OBJECTIVE, QuantizationAware('int4'))
  for name, objective in (('plain', OBJECTIVE), ('aware', aware)):
    params = jax.tree.map(jnp.asarray, decoders.make_params(CONFIG))
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, state, data, objective=objective, optimizer=optimizer):
      gradient = jax.grad(functools.partial(total, objective))(params, data)
      updates, state = optimizer.update(gradient, state)
      return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for number in range(80):
      params, state = step(params, state, batch(number))
    losses[name] = float(total(OBJECTIVE, as_stored(params, 'int4'), batch(1_000))) / 128
  assert losses['aware'] < 0.9 * losses['plain'], losses
