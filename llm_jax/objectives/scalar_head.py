"""A number for each token: a linear head of one output on what the decoder says of it. Scores and values are such.

Shapes: B batch, T time, D model width.
"""
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.batch import LanguageModelBatch
from llm_jax.config.model.architecture import Architecture
from llm_jax.modules.low_rank import has_dropout
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.classification import init_head, make_head
from llm_jax.objectives.loss import Params
from llm_jax.sharding.context_split import devices_in_time

REWARD, VALUE = 'reward', 'value_head'  # places of the heads in the tree of parameters, beside the decoder's


def init_scalar_head(config: Architecture, rng: jax.Array) -> Params:
  """Fresh parameters of a head: {'w': float32 [d_model, 1]}."""
  return init_head(config, 1, rng)


def apply_scalar_head(model: Transformer, head: Params, x: jax.Array) -> jax.Array:
  """float32 [...] of features [..., d_model]; without a bias, computed in float32."""
  found: Any = make_head(model.config, 1, model.execution).apply({'params': head}, x.astype(jnp.float32))
  return found[..., 0]


def sequence_scores(model: Transformer, params: Params, sequences: LanguageModelBatch, rng: jax.Array | None = None
                    ) -> jax.Array:
  """The score of each row's document, float32 [batch]: what the head `reward` reads at its last token.

  sequences: one document a row, from position 0 on. Its last target, such as the end of the answer, is read too.
  rng: of dropout; None: there is none.
  """
  tokens_BT, positions_BT, segments_BT = whole_documents(sequences)
  rngs: Any = {'dropout': rng} if rng is not None and (model.config.dropout or has_dropout(params)) else {}
  x_BTD: Any = model.apply({'params': params}, tokens_BT, positions_BT, segments_BT, method='features', rngs=rngs)
  last_B = jnp.maximum((segments_BT > 0).sum(1) - 1, 0)  # by length: an id that pads may be one of the document's
  x_BD = jnp.take_along_axis(x_BTD, last_B[:, None, None], 1)[:, 0]
  return apply_scalar_head(model, params[REWARD], x_BD)


def whole_documents(sequences: LanguageModelBatch) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Tokens, positions and segment ids of rows of one document, with the last target behind the inputs, so that
  they are one longer.

  Where time is split over devices there is more padding, so that it divides.
  """
  B, T = sequences.tokens.shape
  devices = devices_in_time()
  extra = 1 if devices == 1 else 2 * devices

  def behind(first: Any, rest: Any) -> jax.Array:
    return jnp.pad(jnp.concatenate([first[:, :1], rest], 1), ((0, 0), (0, extra - 1)))

  tokens_BT = behind(sequences.tokens, sequences.targets)
  segments_BT = behind(sequences.segment_ids, sequences.segment_ids)
  positions_BT = jnp.broadcast_to(jnp.arange(T + extra), tokens_BT.shape)
  return tokens_BT, positions_BT, segments_BT
