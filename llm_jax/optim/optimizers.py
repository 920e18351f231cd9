"""Optimizers from Optax at learning rate 1. The train step multiplies their updates by the schedule's rate.

So a skipped step advances neither the optimizer's state nor the schedule.
"""
import importlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

from llm_jax import paths
from llm_jax.config.errors import ConfigError, require
from llm_jax.config.optimizers import Adafactor, AdamW, Lion, Muon, Optax, Optimizer
from llm_jax.matrices import matrix_of
from llm_jax.optim.adafactor import scale_by_adafactor
from llm_jax.optim.moments import with_stored_moments

# Weight decay applies to weights, embeddings included (GPT-2, nanoGPT), and adapters, and to nothing else: no biases,
# no norms. The rule goes by name and not by dimensions, because a bias of scanned layers has two or three. A router's
# balance bias has no gradient, so no optimizer moves it; the objective does (`LanguageModelObjective.after_step`).
DECAYED = r'(^|/)(w|lora_a|lora_b)$'

# The root mean square of AdamW's typical update. Muon's updates are scaled to it, so that one learning rate and one
# weight decay suit the matrices and the rest (Liu et al. 2025, Muon is Scalable for LLM Training, section 2.2).
ADAMW_RMS = 0.2


def make_optimizer(config: Optimizer, params: Any) -> optax.GradientTransformation:
  """The transformation from gradients to updates for learning rate 1: `params += rate * update`.

  Args:
    params: the parameters or their shapes, `blocks/...` with a leading axis of scanned layers.

  Raises: ConfigError where the function of `Optax` makes no optimizer.
  """
  match config:
    case AdamW():
      return with_stored_moments(adamw(config), config.moments)
    case Lion(b1, b2, weight_decay, moments):
      lion = optax.lion(1.0, b1, b2, weight_decay=weight_decay, mask=decay_mask)
      return with_stored_moments(lion, moments)
    case Adafactor():
      return optax.chain(scale_by_adafactor(config), optax.add_decayed_weights(config.weight_decay, decay_mask),
                         optax.scale(-1.0))
    case Optax():
      return made_by_function(config)
    case Muon():
      muon = optax.contrib.muon(
        learning_rate=config.matrix_scale, beta=config.beta, eps=config.eps, weight_decay=config.weight_decay,
        consistent_rms=ADAMW_RMS, muon_weight_dimension_numbers=dimension_numbers)
      # Optax's muon has its own AdamW for the other parameters, but with Nesterov momentum and decay of everything. So
      # `partition` gives them to ours.
      labels = paths.map_named(lambda path, _: 'adamw' if matrix_of(path) is None else 'muon', params)
      both = optax.partition({'muon': muon, 'adamw': adamw(config)}, labels)
      return with_stored_moments(both, config.moments)


def adamw(config: AdamW | Muon) -> optax.GradientTransformation:
  return optax.adamw(1.0, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=decay_mask)


def made_by_function(config: Optax) -> optax.GradientTransformation:
  """What the function of `config` returns, tried on the shapes of a matrix."""
  function = import_function(config.function)
  arguments = {argument.name: argument.value for argument in config.arguments}
  try:
    optimizer = function(learning_rate=1.0, **arguments)
  except (TypeError, ValueError) as error:
    raise ConfigError('function', config.function,
                      f'cannot be called with learning_rate=1.0 and {arguments or "nothing else"} ({error})') from error
  require(isinstance(optimizer, optax.GradientTransformation), 'function', config.function,
          f'returns {type(optimizer).__name__}: give a function that returns an optax.GradientTransformation')
  params = {'w': jax.ShapeDtypeStruct((4, 4), jnp.float32)}
  try:
    state = jax.eval_shape(optimizer.init, params)
    _, next_state = jax.eval_shape(lambda *given: optimizer.update(*given), params, state, params)
  except Exception as error:  # of whatever kind: it is somebody's function
    raise ConfigError('function', config.function, f'its update of (gradients, state, parameters) fails '
                      f'({type(error).__name__}: {error})') from error
  require(jax.tree.map(describe, state) == jax.tree.map(describe, next_state), 'function', config.function,
          'its update gives a state of another form than its init: training needs one form')
  return optimizer


def import_function(name: str) -> Callable[..., Any]:
  """'module:function' -> the function."""
  module, _, attribute = name.partition(':')
  try:
    function = getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError) as error:
    raise ConfigError('function', name, f'cannot be imported ({error}): install it, or write it as '
                      "'module:function'") from error
  require(callable(function), 'function', name, f'is a {type(function).__name__}: name a function')
  return function


def describe(leaf: Any) -> tuple[tuple[int, ...], str]:
  return leaf.shape, str(leaf.dtype)


def decay_mask(params: Any) -> Any:
  """True where weight decay applies."""
  return paths.map_named(lambda path, _: re.search(DECAYED, path) is not None, params)


def dimension_numbers(params: Any) -> Any:
  """The input and output axes of each of Muon's matrices; None for any other parameter."""
  def of(path: str, leaf: Any) -> MuonDimensionNumbers | None:
    matrix = matrix_of(path)
    return None if matrix is None else MuonDimensionNumbers(*matrix)

  return paths.map_named(of, params)


def clip_factor(norm: jax.Array, max_norm: float | None) -> jax.Array | float:
  """The factor that clips gradients of global norm `norm` to `max_norm`; None means no clipping.

  min(1, max_norm / (norm + 1e-6)), as in PyTorch's `clip_grad_norm_`.
  """
  if max_norm is None:
    return 1.0
  return jnp.minimum(1.0, max_norm / (norm + 1e-6))
