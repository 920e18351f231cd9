"""What the page's script reads of an explanation: plain values for JSON, and the attention weights packed into text.

Shapes: T time, S time of the keys, D model width, H query heads, X chosen experts, U cache slots, N new tokens.
"""
import base64
import zlib
from typing import Any

import numpy as np

from llm_jax.config.model.architecture import MixtureOfExperts
from llm_jax.explain.explanation import Explanation
from llm_jax.explain.lens import TEMPERATURES
from llm_jax.explain.trace import LayerTrace
from llm_jax.report.html import escape_controls

DIGITS = 4


def payload(explanation: Explanation) -> dict[str, Any]:
  """One model's part of the page's data."""
  trace = explanation.trace
  drawn = explanation.candidates
  return {
    'tokens': trace.tokens_T.tolist(),
    'texts': {str(token): escape_controls(text) for token, text in explanation.texts.items()},
    'layers': [_layer(layer) for layer in trace.layers],
    'weights': pack([layer_bytes(layer) for layer in trace.layers]),
    'head_lengths': [rounded(layer.heads_HT.T) for layer in trace.layers],
    'attention': [_lengths(layer.attention_TD) for layer in trace.layers],
    'feed_forward': [_lengths(layer.feed_forward_TD) for layer in trace.layers],
    'residual': [_lengths(x_TD) for x_TD in trace.residuals],
    'ranks': [reading.rank_T.tolist() for reading in explanation.readings],
    'slots': [{'layers': table.layers, 'positions': table.positions_TU.tolist()} for table in explanation.slots],
    'temperatures': TEMPERATURES,
    'candidates': {
      'tokens': drawn.tokens_TN.tolist(),
      'logits': rounded(drawn.logits_TN, 6),
      'rest': None if np.isinf(drawn.rest).all() else rounded(drawn.rest, 6),
    },
  }


def _layer(layer: LayerTrace) -> dict[str, Any]:
  mixture = layer.block.feed_forward
  experts = None
  if layer.experts_TX is not None and layer.expert_weights_TX is not None:
    assert isinstance(mixture, MixtureOfExperts)
    experts = {'count': mixture.num_experts, 'chosen': layer.experts_TX.tolist(),
               'weights': rounded(layer.expert_weights_TX),
               'kept': None if layer.kept_TX is None else layer.kept_TX.tolist()}
  return {'heads': len(layer.weights_HTS), 'window': layer.window, 'sinks': layer.sinks_HT is not None,
          'experts': experts}


def layer_bytes(layer: LayerTrace) -> bytes:
  """255 x the root of each weight, head by head, of each query the sink (where there is one) and the keys up to it."""
  rows_HTS = np.tril(layer.weights_HTS)
  kept = np.tril(np.ones(rows_HTS.shape[1:], bool))
  if layer.sinks_HT is not None:
    rows_HTS = np.concatenate([layer.sinks_HT[..., None], rows_HTS], axis=-1)
    kept = np.concatenate([np.ones((len(kept), 1), bool), kept], axis=-1)
  roots = np.sqrt(np.clip(rows_HTS[:, kept], 0, 1))
  return np.round(255 * roots).astype(np.uint8).tobytes()


def pack(parts: list[bytes]) -> str:
  return base64.b64encode(zlib.compress(b''.join(parts), 9)).decode('ascii')


def _lengths(x_TD: np.ndarray) -> Any:
  return rounded(np.linalg.norm(x_TD, axis=-1))


def rounded(x: np.ndarray, digits: int = DIGITS) -> Any:
  """Nested lists with so many significant digits."""
  if x.ndim:
    return [rounded(row, digits) for row in x]
  return float(f'{float(x):.{digits}g}')
