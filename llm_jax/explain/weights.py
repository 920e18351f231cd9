"""The attention weights of one layer, computed again from the queries and keys that a forward pass made.

Shapes: T time, S time of the keys, D model width, H query heads, G key/value heads, J query heads per
  key/value head, K head size.
"""
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llm_jax.config.model.architecture import AnyAttention, Attention, LatentAttention
from llm_jax.modules.kernels.scores import MASKED, Scoring, softmax
from llm_jax.modules.layer_inputs import LayerInputs
from llm_jax.modules.positions import rotate

Captured = Mapping[str, jax.Array]  # the outputs of the modules within a layer's attention, by name


class Weights(NamedTuple):
  """weights_HTS: what each head gives to each position; 0 where it sees none. Rows add up to 1, with the sink's part.

  sinks_HT: what a head gives to its sink; None without sinks.
  values_SHK: the values that are summed.
  """
  weights_HTS: jax.Array
  sinks_HT: jax.Array | None
  values_SHK: jax.Array


def attention_weights(config: AnyAttention, captured: Captured, params: Any, inputs: LayerInputs, d_model: int
                      ) -> Weights:
  """The weights of one row of tokens.

  Args:
    captured: the outputs of the layer's projections and norms.
    params: of the layer's attention.
    inputs: of the forward pass.
  """
  match config:
    case Attention():
      q_THK, k_SHK, v_SHK = _grouped(config, captured, inputs, d_model)
      scoring = Scoring(config.scale or q_THK.shape[-1] ** -0.5, config.soft_cap, config.window)
      sinks_H = params['sinks']['logit'] if config.sinks else None
    case LatentAttention():
      q_THK, k_SHK, v_SHK = _latent(config, captured, inputs)
      scoring = Scoring(config.scale or q_THK.shape[-1] ** -0.5)
      sinks_H = None
  scores_HTS = scoring.scores(jnp.einsum('THK,SHK->HTS', q_THK, k_SHK))
  positions = jnp.arange(q_THK.shape[0])
  visible = scoring.is_visible(positions[:, None], positions)
  sinks_H11 = None if sinks_H is None else sinks_H[:, None, None]
  weights_HTS = softmax(jnp.where(visible, scores_HTS, MASKED), sinks_H11)
  sinks_HT = None if sinks_H is None else 1 - weights_HTS.sum(-1)
  return Weights(weights_HTS, sinks_HT, v_SHK)


def _grouped(config: Attention, captured: Captured, inputs: LayerInputs, d_model: int
             ) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Queries, keys and values, those of a group repeated for each of its query heads."""
  K = config.head_size(d_model)
  q_THK = captured['query']
  k_SGK = captured['key']
  if 'query_norm' in captured:
    q_THK = captured['query_norm'].reshape(-1, config.num_heads, K)
    k_SGK = captured['key_norm'].reshape(-1, config.kv_heads, K)
  rotation = inputs.rotation_of(config.positions, config.rotary_size(d_model))
  if rotation is not None:
    q_THK = rotate(q_THK[None], rotation)[0]
    k_SGK = rotate(k_SGK[None], rotation)[0]
  J = config.num_heads // config.kv_heads
  v_SGK = captured['value']
  return q_THK, jnp.repeat(k_SGK, J, axis=1), jnp.repeat(v_SGK, J, axis=1)


def _latent(config: LatentAttention, captured: Captured, inputs: LayerInputs
            ) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Queries, keys and values, expanded from the compressed vectors."""
  rotation = inputs.rotation_of(None, config.rope_dim)
  assert rotation is not None, 'an architecture with latent attention has rotary positions'
  q_THK = captured['query' if config.q_rank is None else 'query_up']
  q_nope, q_rotary = jnp.split(q_THK, [config.nope_dim], axis=-1)
  q_rotary = rotate(q_rotary[None], rotation)[0]
  k_S1K = captured['key_rotary'][:, None]
  k_rotary = rotate(k_S1K[None], rotation)[0]
  k_rotary = jnp.broadcast_to(k_rotary, q_rotary.shape)
  k_SHK = jnp.concatenate([captured['key_up'], k_rotary], axis=-1)
  return jnp.concatenate([q_nope, q_rotary], axis=-1), k_SHK, captured['value_up']


def head_outputs(weights: Weights, w_HKD: jax.Array) -> jax.Array:
  """What each head writes: its weights x its values x its part of the output projection, [H, T, D]."""
  read_HTK = jnp.einsum('HTS,SHK->HTK', weights.weights_HTS, weights.values_SHK)
  return jnp.einsum('HTK,HKD->HTD', read_HTK, w_HKD)
