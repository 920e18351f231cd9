"""Every strategy on eight virtual devices places what the two tables say."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from llm_jax import paths
from llm_jax.config import presets
from llm_jax.config.errors import ConfigError
from llm_jax.config.optimizers import AdamW, Muon
from llm_jax.config.run import Mesh
from llm_jax.modules.transformer import Transformer
from llm_jax.optim.optimizers import make_optimizer
from llm_jax.sharding import rules
from llm_jax.sharding.mesh import make_mesh
from llm_jax.train.state import TrainState

SIZES = dict(d_model=16, num_layers=4, num_heads=8, vocab_size=64)
GPT2 = presets.gpt2(**SIZES, max_length=12)
LLAMA = presets.llama(**SIZES, num_kv_heads=2, d_ff=32, head_dim=4)
MESHES = {'data': Mesh(), 'fsdp': Mesh(data=1, fsdp=8), 'tensor': Mesh(data=1, tensor=8), 'all': Mesh(1, 2, 2, 2)}


def shapes(config):
  return jax.eval_shape(Transformer(config).init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))['params']


def splits(config, mesh):
  """Which mesh axis splits which dimension, for every parameter that is split."""
  shardings = rules.param_shardings(shapes(config), make_mesh(mesh))
  found = {path: {axis: i for i, axis in enumerate(s.spec) if axis} for path, s in paths.leaves(shardings)}
  return {path: axes for path, axes in found.items() if axes}


def test_mesh():
  mesh = make_mesh(Mesh(fsdp=2, tensor=2))
  assert dict(mesh.shape) == {'pipeline': 1, 'data': 2, 'fsdp': 2, 'tensor': 2, 'context': 1, 'expert': 1}
  assert set(mesh.axis_types) == {AxisType.Auto}
  assert make_mesh(Mesh(), jax.devices()[:2]).size == 2
  with pytest.raises(ConfigError, match='mesh.tensor = 3: .*number of devices, 8'):
    make_mesh(Mesh(tensor=3))


BLOCK = 'blocks/block_0/'
FSDP = {'embedding/w': 1, 'head/w': 1, **{f'{BLOCK}attention/{name}/w': 1 for name in ('query', 'key', 'value')},
        f'{BLOCK}attention/out/w': 3, f'{BLOCK}feed_forward/gate/w': 1, f'{BLOCK}feed_forward/up/w': 1,
        f'{BLOCK}feed_forward/down/w': 2}
TENSOR = {'embedding/w': 0, 'head/w': 0, f'{BLOCK}attention/query/w': 2, f'{BLOCK}attention/out/w': 1,
          f'{BLOCK}feed_forward/gate/w': 2, f'{BLOCK}feed_forward/up/w': 2, f'{BLOCK}feed_forward/down/w': 1}


def test_parameters_of_each_strategy():
  assert splits(LLAMA, Mesh()) == {}
  assert splits(LLAMA, Mesh(data=1, context=8)) == {}
  assert splits(LLAMA, Mesh(data=1, fsdp=8)) == {path: {'fsdp': i} for path, i in FSDP.items()}
  # two key/value heads cannot be cut in eight, nor in four: they stay whole; in two they are cut
  assert splits(LLAMA, Mesh(tensor=4)) == {path: {'tensor': i} for path, i in TENSOR.items()}
  heads = {f'{BLOCK}attention/{name}/w': 2 for name in ('key', 'value')}
  assert splits(LLAMA, Mesh(tensor=2)) == {path: {'tensor': i} for path, i in {**TENSOR, **heads}.items()}
  both = splits(LLAMA, Mesh(data=1, fsdp=2, tensor=4))
  assert both == {path: {'fsdp': i, **({'tensor': TENSOR[path]} if path in TENSOR else {})} for path, i in FSDP.items()}


def test_biases_and_positions():
  found = splits(GPT2, Mesh(data=1, fsdp=2, tensor=4))
  assert found['positions/w'] == {'fsdp': 1}
  assert found[f'{BLOCK}attention/query/b'] == {'tensor': 1} and found[f'{BLOCK}feed_forward/up/b'] == {'tensor': 1}
  assert not any(path.endswith(('out/b', 'down/b', 'scale', 'bias')) for path in found)


@pytest.mark.parametrize('mesh', MESHES.values(), ids=MESHES)
@pytest.mark.parametrize('optimizer', [AdamW(), Muon()], ids=lambda o: type(o).__name__)
def test_state_lives_with_its_parameters(optimizer, mesh):
  mesh, params = make_mesh(mesh), shapes(GPT2)

  def make():
    ones = jax.tree.map(lambda p: jnp.ones(p.shape), params)
    return TrainState.create(ones, make_optimizer(optimizer, params), ema=True)

  shardings = rules.state_shardings(jax.eval_shape(make), params, mesh)
  state = jax.jit(make, out_shardings=shardings)()
  wanted = dict(paths.leaves(rules.param_shardings(params, mesh)))
  moments = 0
  for path, leaf in paths.leaves(state):
    owner = next((name for name in wanted if path.endswith('/' + name)), None)
    assert leaf.sharding.is_equivalent_to(wanted[owner] if owner else rules.replicated(mesh), leaf.ndim), path
    moments += owner is not None and path.startswith('opt_state')
  matrices = 6  # Muon keeps one moment of a matrix, AdamW two of everything
  assert moments == (2 * len(wanted) if isinstance(optimizer, AdamW) else 2 * len(wanted) - matrices)


@pytest.mark.parametrize('optimizer', [AdamW(), Muon()], ids=lambda o: type(o).__name__)
def test_update_of_sharded_is_that_of_whole(optimizer):
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), shapes(LLAMA))
  transformation, mesh = make_optimizer(optimizer, params), make_mesh(MESHES['all'])

  def step(p):
    return transformation.update(p, transformation.init(p), p)[0]

  whole = jax.jit(step)(params)
  placed = rules.param_shardings(params, mesh)
  parts = jax.jit(step, out_shardings=placed)(jax.device_put(params, placed))
  for (path, a), b in zip(paths.leaves(whole), jax.tree.leaves(parts), strict=True):
    assert np.linalg.norm(a - np.asarray(b)) <= 2e-6 * np.linalg.norm(a), path


def test_uncovered_parameter_is_an_error():
  mesh = make_mesh(Mesh())
  leaf = {'w': np.ones((4, 8))}
  with pytest.raises(ConfigError, match='blocks/block_0/attention/sink/w .*add a row'):
    rules.param_shardings({'blocks': {'block_0': {'attention': {'sink': leaf}}}}, mesh)
  with pytest.raises(ConfigError, match='overhead/w .*add a row'):
    rules.param_shardings({'overhead': leaf}, mesh)
  with pytest.raises(ConfigError, match='final_norm/scale = .2 dimensions.*names 1'):
    rules.param_shardings({'final_norm': {'scale': np.ones((4, 8))}}, mesh)


def test_parameter_that_is_not_divided_is_an_error():
  with pytest.raises(ConfigError, match='mesh.fsdp = 8: does not divide embed=12 of embedding/w'):
    rules.param_shardings({'embedding': {'w': np.ones((16, 12))}}, make_mesh(Mesh(data=1, fsdp=8)))


def test_tables_name_known_axes():
  named = {axis for _, axes in rules.PARAMETER_AXES for axis in axes}
  named |= {axis for strategy in rules.STRATEGIES.values() for axes in strategy for axis in axes}
  assert named <= set(rules.LOGICAL_AXES)
  assert tuple(rules.STRATEGIES) == tuple(make_mesh(Mesh()).axis_names)


@pytest.mark.parametrize('mesh, expected', [
    (Mesh(), P('data')), (Mesh(fsdp=4), P(('data', 'fsdp'))), (Mesh(data=1, fsdp=8), P('fsdp')),
    (Mesh(context=2), P('data', 'context')), (Mesh(data=1, tensor=8), P())])
def test_batch(mesh, expected):
  mesh = make_mesh(mesh)
  assert rules.batch_sharding(mesh).is_equivalent_to(NamedSharding(mesh, expected), 2)


@pytest.mark.parametrize('mesh, shape, logical, expected', [
    (Mesh(), (8, 4, 16), ('batch', 'seq', 'embed'), P('data')),
    (Mesh(fsdp=4), (8, 4, 16), ('batch', 'seq', 'embed'), P(('data', 'fsdp'))),
    (Mesh(fsdp=4), (2, 4, 16), ('batch', 'seq', 'embed'), P('data')),             # fsdp does not divide the rest
    (Mesh(tensor=4), (2, 4, 16), ('batch', 'seq', 'embed'), P('data')),
    (Mesh(tensor=4), (2, 4, 8, 3), ('batch', 'seq', 'heads', 'head_dim'), P('data', None, 'tensor')),
    (Mesh(tensor=4), (2, 4, 2, 3), ('batch', 'seq', 'kv_heads', None), P('data')),
    (Mesh(tensor=4), (2, 4, 64), ('batch', 'seq', 'vocab'), P('data', None, 'tensor')),
    (Mesh(tensor=4), (2, 4, 32), ('batch', 'seq', 'mlp'), P('data', None, 'tensor')),
    (Mesh(context=4), (2, 4, 16), ('batch', 'seq', 'embed'), P('data', 'context')),
    (Mesh(context=4), (2, 1, 16), ('batch', 'seq', 'embed'), P('data')),           # decoding one token
    (Mesh(expert=4), (8, 3, 16), ('batch', 'seq', 'embed'), P(('data', 'expert'))),
    (Mesh(expert=4), (4, 3, 16), ('batch', 'seq', 'embed'), P('data'))])
def test_activations_of_each_strategy(mesh, shape, logical, expected):
  mesh = make_mesh(mesh)
  with jax.set_mesh(mesh):
    y = jax.jit(lambda x: rules.constrain(2 * x, *logical))(jnp.ones(shape))
  assert y.sharding.is_equivalent_to(NamedSharding(mesh, expected), y.ndim), y.sharding


def lowered(config):
  model, params = Transformer(config), shapes(config)
  tokens = jax.ShapeDtypeStruct((8, 8), jnp.int32)
  return jax.jit(lambda p, t: model.apply({'params': p}, t)).lower(params, tokens).as_text()


def test_constraints_are_in_the_program():
  """They would be silently absent under `with mesh:`, or if the mesh were not seen inside flax's scan."""
  with jax.set_mesh(make_mesh(Mesh(fsdp=2, tensor=2))):
    text = lowered(LLAMA)
  assert text.count('sdy.sharding_constraint') >= 8
  for rest in ('{}]', '{"tensor"}]', '{"tensor"}, {}]'):  # the residual stream; mlp and vocab; heads
    assert f'[{{"data", "fsdp"}}, {{}}, {rest}' in text
  assert 'sharding_constraint' not in lowered(LLAMA)
  with jax.set_mesh(make_mesh(Mesh(), jax.devices()[:1])):
    assert 'sharding_constraint' not in lowered(LLAMA)


def test_constrain_refuses_unknown_names():
  for logical in (('batch', 'time'), ('batch',)):
    with pytest.raises(ValueError, match='does not name the 2 dimensions'):
      rules.constrain(jnp.ones((2, 3)), *logical)
