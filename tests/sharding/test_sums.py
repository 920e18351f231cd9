"""Gradients are summed over devices onto the sharding of their weights: the values, and what goes over the network."""
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import paths
from llm_jax.batch import LanguageModelBatch
from llm_jax.config import presets
from llm_jax.config.run import Mesh
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives import chunks
from llm_jax.objectives.language_model import LanguageModelObjective
from llm_jax.objectives.loss import Maximum
from llm_jax.sharding import sums
from llm_jax.sharding.collectives import collectives_of
from llm_jax.sharding.mesh import make_mesh
from llm_jax.sharding.rules import batch_sharding, param_shardings
from llm_jax.sharding.sums import by_device, sum_of_rows, sum_over_devices
from llm_jax.train.step import accumulate
from tests.train.from_the_mean import FromTheMean

VOCAB, WIDTH, ROWS, TIME = 96, 32, 8, 32
CONFIG = presets.llama(WIDTH, 2, 4, num_kv_heads=2, d_ff=64, vocab_size=VOCAB)
MODEL = Transformer(CONFIG, Execution(kernels='xla', unroll=False, remat='block'))
MATRICES = 7  # of a block: query, key, value, out, gate, up, down


# ------------------------------------------------------------------------------------------------ the sum alone
@pytest.mark.parametrize('mesh', (Mesh(1, 8), Mesh(2, 4), Mesh(1, 2, 2, 2), Mesh(8)), ids=str)
@pytest.mark.parametrize('logical', (('embed', 'mlp'), ('mlp', 'embed')), ids='-'.join)
def test_sum_of_each_devices_part(mesh, logical):
  """x' y of all tokens, [16, 16], and where it lies."""
  x, y = np.random.default_rng(0).standard_normal((2, ROWS, TIME, 16)).astype(np.float32)

  def product(x, y):
    terms = jnp.einsum('rtni,rtnj->rtij', by_device(x), by_device(y))
    return sum_over_devices(terms, logical)

  placed = make_mesh(mesh)
  with jax.set_mesh(placed):
    got = jax.jit(product)(*jax.device_put((x, y), jax.NamedSharding(placed, batch_sharding(placed).spec)))
  np.testing.assert_allclose(got, np.einsum('bti,btj->ij', x.astype(float), y), rtol=2e-5, atol=2e-5)
  parts = {'embed': mesh.fsdp, 'mlp': mesh.tensor}
  assert got.addressable_shards[0].data.shape == tuple(16 // parts[name] for name in logical)


@pytest.mark.parametrize('mesh, in_stages', ((Mesh(1, 8), True), (Mesh(2, 4), False)))
def test_on_tpu_a_sum_over_all_devices_goes_in_two_stages(mesh, in_stages, monkeypatch):
  """Each device gets the same part as in one stage."""
  monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
  monkeypatch.setattr(sums, 'LEAST_IN_STAGES', 8)
  terms = np.random.default_rng(0).integers(-9, 9, (8, 1, 16, 4)).astype(np.float32)
  with jax.set_mesh(make_mesh(mesh)):
    run = jax.jit(functools.partial(sum_over_devices, logical=('embed', 'vector')))
    text = run.lower(terms).as_text()
    np.testing.assert_array_equal(run(terms), terms.sum((0, 1)))
  assert text.count('reduce_scatter"') == (2 if in_stages else 1)


@pytest.mark.parametrize('mesh', (Mesh(1, 8), Mesh(2, 4), Mesh(1, 2, 2, 2), Mesh(2, 1, 4)), ids=str)
def test_sum_of_the_tokens_that_read_a_row(mesh):
  """A table [24, 16], and where its gradient lies."""
  index = np.random.default_rng(0).integers(0, 24, (ROWS, TIME))
  d = np.random.default_rng(1).standard_normal((ROWS, TIME, 16)).astype(np.float32)
  want = np.zeros((24, 16))
  np.add.at(want, index, d)
  with jax.set_mesh(make_mesh(mesh)):
    run = jax.jit(lambda index, d: sum_of_rows(index, d, (24, 16), jnp.float32, ('vocab', 'embed')))
    got = run(index, d)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  assert got.addressable_shards[0].data.shape == (24 // mesh.tensor, 16 // mesh.fsdp)


# ------------------------------------------------------------------------------------------------ of a whole model
def batch():
  tokens = np.random.default_rng(0).integers(0, VOCAB, (ROWS, TIME + 1)).astype(np.int32)
  positions = np.tile(np.arange(TIME, dtype=np.int32), (ROWS, 1))
  return LanguageModelBatch(tokens[:, :-1], tokens[:, 1:], np.ones((ROWS, TIME), np.float32), positions,
                            np.ones_like(positions))


@functools.cache
def params():
  return jax.device_get(jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params'])


def program(mesh=None, microbatches=1):
  """The compiled gradient, and its arguments."""
  function = jax.jit(lambda params, batch: accumulate(LanguageModelObjective(MODEL), params, None, batch,
                                                      jax.random.key(0), microbatches)[0])
  if mesh is None:
    arguments = params(), batch()
    return function.lower(*arguments).compile(), arguments
  arguments = jax.device_put((params(), batch()), (param_shardings(params(), mesh), batch_sharding(mesh)))
  with jax.set_mesh(mesh):
    return function.lower(*arguments).compile(), arguments


@functools.cache
def gradient_of_one_device():
  compiled, arguments = program()
  return dict(paths.leaves(jax.device_get(compiled(*arguments))))


@pytest.mark.parametrize('mesh', (Mesh(1, 8), Mesh(2, 4), Mesh(1, 2, 2, 2)), ids=str)
def test_gradients_of_eight_devices_are_those_of_one(mesh):
  compiled, arguments = program(make_mesh(mesh))
  for path, got in paths.leaves(compiled(*arguments)):
    want = gradient_of_one_device()[path]
    assert np.abs(got - want).max() <= 1e-6 * np.abs(want).max(), path


@pytest.mark.parametrize('mesh', (Mesh(4, 2), pytest.param(Mesh(8), marks=pytest.mark.slow)), ids=str)
def test_replicas_sum_over_their_microbatches_and_reduce_once(mesh):
  """Gradients are those of one device, and what goes along data is sent outside of all loops."""
  placed = make_mesh(mesh)
  compiled, arguments = program(placed, 2)
  for path, got in paths.leaves(compiled(*arguments)):
    want = gradient_of_one_device()[path]
    assert np.abs(got - want).max() <= 1e-6 * np.abs(want).max(), path
  over_data = [each for each in collectives_of(compiled.as_text(), placed.shape) if 'data' in each.axes]
  assert over_data and all(each.times == 1 for each in over_data)


class Largest(FromTheMean):
  """Beside it a metric that is no sum."""

  def metrics(self, rows, error):
    return {'largest': Maximum(jnp.abs(rows).max())}


class OfOwnBatch(Largest):
  depends_on_microbatches = True


@pytest.mark.parametrize('kind', (Largest, OfOwnBatch))
def test_statistics_and_maxima_of_replicas_are_those_of_all_rows(kind):
  rows = np.random.default_rng(0).standard_normal(16).astype(np.float32)
  run = jax.jit(functools.partial(accumulate, kind(None, None)), static_argnums=4)
  want, want_loss = run({'w': jnp.float32(2)}, None, rows, jax.random.key(0), 1)
  with jax.set_mesh(make_mesh(Mesh(4, 2))):
    got, loss = run({'w': jnp.float32(2)}, None, rows, jax.random.key(0), 2)
    text = run.lower({'w': jnp.float32(2)}, None, rows, jax.random.key(0), 2).as_text()
  np.testing.assert_allclose((got['w'], loss.total), (want['w'], want_loss.total), rtol=1e-6)
  assert (loss.weight, loss.metrics['largest'].value) == (16, np.abs(rows).max())
  assert ('manual_axes={"data"}' in text) == (kind is Largest)


def computations(text):
  """{name: text} of an HLO program; the first computation's name is in `ENTRY`."""
  return dict(re.findall(r'^((?:ENTRY )?%[\w.\-]+) .*?\{\n(.*?)^\}', text, re.MULTILINE | re.DOTALL))


def elements(shape):
  return np.prod([int(size) for size in shape.split(',') if size], dtype=int)


@pytest.mark.parametrize('mesh', (Mesh(1, 8), Mesh(2, 4)), ids=str)
def test_matrices_are_reduced_onto_their_sharding_and_the_head_is_gathered_once(mesh, monkeypatch):
  monkeypatch.setattr(chunks, 'CHUNK_TOKENS', 8)
  monkeypatch.setattr(chunks, 'CHUNK_BYTES', {'xla': 1})
  compiled, _ = program(make_mesh(mesh))
  text = compiled.as_text()
  assert len(re.findall(r' reduce-scatter(?:-start)?\(', text)) == MATRICES + 1  # and the head
  summed = re.findall(r'f32\[([0-9,]*)\][^ ]* all-reduce(?:-start)?\(', text)
  part = VOCAB * WIDTH // mesh.fsdp
  assert all(elements(shape) <= part for shape in summed)  # over data, of what fsdp has already cut
  gathers = {name: [elements(shape) for shape in re.findall(r'f32\[([0-9,]*)\][^ ]* all-gather(?:-start)?\(', body)]
             for name, body in computations(text).items()}
  of_tables = {name: sizes.count(VOCAB * WIDTH) for name, sizes in gathers.items() if VOCAB * WIDTH in sizes}
  assert [(name.startswith('ENTRY'), count) for name, count in of_tables.items()] == [(True, 2)]
