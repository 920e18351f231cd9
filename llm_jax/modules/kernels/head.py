"""The product with the vocabulary.

Shapes: B batch, T time, D model width, V vocabulary, M tokens (B x T).
"""
import jax
import jax.numpy as jnp

from llm_jax.modules.kernels import resolve

FEW = 64  # up to so many tokens, reading the weight takes longer than the arithmetic


def vocabulary_logits(x_BTD: jax.Array, w_VD: jax.Array, kernels: str | None = None) -> jax.Array:
  """x w', float32 [B, T, V].

  With few tokens XLA on CPU reads the weight at 19 GB/s as the left operand and at 12 GB/s as the right one (8 tokens,
  V = 32,000, D = 384, 2 cores, best of 15 on a shared machine). So 'cpu' computes w x' for few tokens.
  """
  B, T, D = x_BTD.shape
  if resolve(kernels) == 'cpu' and 1 < B * T <= FEW:
    logits_VM = jax.lax.dot_general(w_VD, x_BTD.reshape(B * T, D), (((1,), (1,)), ((), ())),
                                    preferred_element_type=jnp.float32)
    return jax.lax.optimization_barrier(logits_VM).T.reshape(B, T, -1)
  return jnp.einsum('BTD,VD->BTV', x_BTD, w_VD, preferred_element_type=jnp.float32)
