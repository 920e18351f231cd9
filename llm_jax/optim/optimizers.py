"""Optimizers from Optax, at learning rate 1: the train step multiplies the updates by the schedule's rate.

So a step that is skipped moves neither the optimizer's state nor the schedule.
"""
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

from llm_jax import paths
from llm_jax.config.optimizers import AdamW, Muon, Optimizer

# Weights decay, embeddings included (GPT-2, nanoGPT); biases, norms' scales and all else do not. By name, because
# scanned layers give a bias two or three dimensions. A router's balance bias has no gradient either, so no optimizer
# moves it: its objective does (`LanguageModelObjective.after_step`).
DECAYED = r'(^|/)w$'

# What Muon orthogonalises: path -> input and output axes, counted from the end so that the axis of scanned layers,
# and that of experts, where there are, are left over and every layer's, every expert's matrix is its own. AdamW takes
# the rest: embedding, positions, head, routers (classifiers, as the head is), biases, norms.
MATRICES = (
  (r'/attention/(query|key|value)/w$',     MuonDimensionNumbers((-3,), (-2, -1))),  # D -> H K
  (r'/attention/out/w$',                   MuonDimensionNumbers((-3, -2), (-1,))),  # H K -> D
  (r'/attention/(query|key|value)_up/w$',  MuonDimensionNumbers((-3,), (-2, -1))),  # rank -> H K
  (r'/attention/(query_down|kv_down|key_rotary)/w$', MuonDimensionNumbers((-2,), (-1,))),  # D -> rank
  (r'/feed_forward/((experts|shared)/)?(gate|up|down)/w$', MuonDimensionNumbers((-2,), (-1,))),  # D -> F, F -> D
  (r'^multi_token_\d+/project/w$',         MuonDimensionNumbers((-2,), (-1,))),     # 2 D -> D
)

# The root mean square of AdamW's typical update: with it one learning rate and one weight decay serve matrices and the
# rest (Liu et al. 2025, Muon is Scalable for LLM Training, section 2.2).
ADAMW_RMS = 0.2


def make_optimizer(config: Optimizer, params: Any) -> optax.GradientTransformation:
  """The transformation from gradients to updates for learning rate 1: `params += rate * update`.

  Args:
    params: the parameters or their shapes, `blocks/...` with a leading axis of scanned layers.
  """
  match config:
    case AdamW():
      return adamw(config)
    case Muon():
      muon = optax.contrib.muon(
        learning_rate=config.matrix_scale, beta=config.beta, eps=config.eps, weight_decay=config.weight_decay,
        consistent_rms=ADAMW_RMS, muon_weight_dimension_numbers=dimension_numbers)
      # Optax's muon has an AdamW for the rest, but with Nesterov momentum and decay of all: so ours takes that part.
      labels = paths.map_named(lambda path, _: 'adamw' if paths.first_match(MATRICES, path) is None else 'muon', params)
      return optax.partition({'muon': muon, 'adamw': adamw(config)}, labels)


def adamw(config: AdamW | Muon) -> optax.GradientTransformation:
  return optax.adamw(1.0, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=decay_mask)


def decay_mask(params: Any) -> Any:
  """True where weight decay applies."""
  return paths.map_named(lambda path, _: re.search(DECAYED, path) is not None, params)


def dimension_numbers(params: Any) -> Any:
  """Which axes of each of Muon's matrices are its input and output; None where the parameter is none of them."""
  return paths.map_named(lambda path, _: paths.first_match(MATRICES, path), params)


def clip_factor(norm: jax.Array, max_norm: float | None) -> jax.Array | float:
  """What gradients of global norm `norm` are multiplied by so that it is at most `max_norm`; None leaves them alone.

  min(1, max_norm / (norm + 1e-6)), as in PyTorch's `clip_grad_norm_`.
  """
  return 1.0 if max_norm is None else jnp.minimum(1.0, max_norm / (norm + 1e-6))
