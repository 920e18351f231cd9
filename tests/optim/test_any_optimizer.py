"""Lion against its paper's algorithm, and optimizers that a function makes."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm_jax import paths
from llm_jax.config import schema
from llm_jax.config.errors import ConfigError
from llm_jax.config.optimizers import Adafactor, AdamW, Lion, Optax, OptaxArgument, state_form
from llm_jax.optim.optimizers import make_optimizer
from tests.optim.test_optimizers import GPT2, init, random_like


def not_an_optimizer(learning_rate):
  return {'rate': learning_rate}


def of_two_forms(learning_rate):
  """Its state is another thing after an update."""
  return optax.GradientTransformation(lambda params: jnp.zeros(()), lambda grads, state, params: (grads, jnp.zeros(2)))


def needs_a_value(learning_rate):
  def update(grads, state, params, *, value):
    return grads, state
  return optax.GradientTransformationExtraArgs(lambda params: (), update)


def test_lion_is_algorithm_2():
  """Chen et al. 2023, float64; weights alone decay."""
  rate, config = 1e-2, Lion(weight_decay=0.3)
  params = init(GPT2)
  expected = {path: np.asarray(leaf, np.float64) for path, leaf in paths.leaves(params)}
  momenta = {path: 0.0 for path in expected}
  optimizer = make_optimizer(config, params)
  state, update = optimizer.init(params), jax.jit(optimizer.update)
  for t in range(5):
    grads = random_like(params, seed=t + 1)
    updates, state = update(grads, state, params)
    params = jax.tree.map(lambda p, u: p + rate * u, params, updates)
    for path, grad in paths.leaves(grads):
      grad = np.asarray(grad, np.float64)
      sign = np.sign(config.b1 * momenta[path] + (1 - config.b1) * grad)
      decay = config.weight_decay if path.endswith('/w') else 0.0
      expected[path] -= rate * (sign + decay * expected[path])
      momenta[path] = config.b2 * momenta[path] + (1 - config.b2) * grad
  for path, leaf in paths.leaves(params):
    np.testing.assert_allclose(leaf, expected[path], rtol=1e-5, atol=1e-6, err_msg=path)


def test_a_function_of_optax_is_called_with_its_arguments():
  params = init(GPT2)
  config = Optax('optax:lamb', (OptaxArgument('weight_decay', 0.1), OptaxArgument('b2', 0.9)))
  ours, theirs = make_optimizer(config, params), optax.lamb(1.0, weight_decay=0.1, b2=0.9)
  grads = random_like(params, seed=1)
  found, _ = ours.update(grads, ours.init(params), params)
  wanted, _ = theirs.update(grads, theirs.init(params), params)
  jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize('function, arguments, message', [
  ('optax:no_such', {}, "function = 'optax:no_such': cannot be imported"),
  ('no_such_package.optimizers:lamb', {}, "cannot be imported (No module named 'no_such_package')"),
  ('optax:__version__', {}, 'is a str: name a function'),
  ('optax:lamb', {'beta': 0.9}, 'cannot be called with learning_rate=1.0'),
  (f'{__name__}:not_an_optimizer', {}, 'returns dict'),
  (f'{__name__}:of_two_forms', {}, 'a state of another form'),
  (f'{__name__}:needs_a_value', {}, 'fails (TypeError'),
])
def test_what_is_no_optimizer_is_refused_by_name(function, arguments, message):
  named = tuple(OptaxArgument(name, value) for name, value in arguments.items())
  with pytest.raises(ConfigError) as error:
    make_optimizer(Optax(function, named), {})
  assert message in str(error.value) and function in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('function', ['lamb', 'optax.lamb', 'optax:', ':lamb', 'a b:c'])
def test_what_is_no_name_of_a_function_is_refused(function):
  with pytest.raises(ConfigError, match="use 'module:function'"):
    Optax(function)


def test_arguments_are_read_back_as_they_are():
  config = Optax('optax:sm3', (OptaxArgument('momentum', 0.5), OptaxArgument('steps', 2), OptaxArgument('on', True)))
  read = schema.read(Optax, {'function': config.function, 'arguments': [
    {'name': argument.name, 'value': argument.value} for argument in config.arguments]}, 'optimizer')
  assert read == config and [type(argument.value) for argument in read.arguments] == [float, int, bool]
  with pytest.raises(ConfigError, match='learning_rate, which is 1'):
    Optax('optax:sm3', (OptaxArgument('learning_rate', 0.5),))


def test_what_goes_on_from_what():
  assert state_form(AdamW(b1=0.8)) == state_form(AdamW())
  assert state_form(AdamW(moments='int8')) != state_form(AdamW())
  assert state_form(Adafactor(weight_decay=0.5)) == state_form(Adafactor())
  assert state_form(Lion()) != state_form(AdamW())
