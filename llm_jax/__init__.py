"""llm_jax: train language models in JAX, from the first token to an aligned model.

Axis letters, used as suffixes in modules, objectives and kernels (x_BTD, q_BTHK):
  B batch   T query time   S key time   D model width   H query heads   G key/value heads   K head size
  F feed-forward width     V vocabulary   E experts   N layers
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
