"""llm_jax: train language models in JAX, from the first token to an aligned model.

Axis letters, used as suffixes in modules, objectives and kernels (x_BTD, q_BTHK):
  B batch   T query time   S key time   D model width   H query heads   G key/value heads   K head size
  F feed-forward width     V vocabulary   E experts   N layers
"""
