"""llm_jax: train language models in JAX, from the first token to an aligned model.

A name with a suffix of letters states the axes of its array: x_BTD, q_BTHK. Every file that uses such names lists its
letters at the end of its docstring; a letter has one meaning in all files (a digit is an axis of that size):

Shapes: B batch, T time, S time of the keys, D model width,
  H query heads, G key/value heads, J query heads per key/value head, Q queries of one key/value head (J x T),
  K head size, R latent rank, F feed-forward width, V vocabulary,
  E experts, X chosen experts, M tokens (B x T), A assignments of tokens to experts (M x X),
  L chunk of time, C classes, I layers,
  U cache slots, P prompt time, N new tokens, W beams, Y beam candidates, Z drafted tokens.
"""
from typing import Any

_EXPORTS = {
  '__version__': 'llm_jax.config.version',
  'Transformer': 'llm_jax.modules.transformer',
  'generate': 'llm_jax.decode.generate',
  'beam_search': 'llm_jax.decode.beam',
  'speculate': 'llm_jax.decode.speculative',
  'Greedy': 'llm_jax.decode.sampling',
  'Sampling': 'llm_jax.decode.sampling',
}


def __getattr__(name: str) -> Any:
  """Imports on first use, so that `import llm_jax` (and with it every --help) does not import jax."""
  if name not in _EXPORTS:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  import importlib
  return getattr(importlib.import_module(_EXPORTS[name]), name)
