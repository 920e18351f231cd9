"""Causal attention for TPU by jax's own Pallas kernel.

The kernel holds the scores of one block at a time (Dao et al. 2022, "FlashAttention") and skips the blocks that the
causal mask and the window hide.

Shapes: B batch, T time, S time of the keys, H query heads, G key/value heads, K head size.
"""
import functools
from typing import Any

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from llm_jax.modules.kernels import accum_dtype
from llm_jax.modules.kernels.on_devices import on_each_device
from llm_jax.modules.kernels.scores import Scoring, pad_time

BLOCKS = 512, 256, 128  # sizes of a block of queries and keys; the first that divides the padded length is used


def flash_attention(q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, segment_ids_BT: jax.Array | None,
                    sinks_H: jax.Array | None, scoring: Scoring) -> jax.Array:
  """`causal_attention` with the score's arguments in `scoring`. Off TPU the kernel is interpreted, which is slow."""
  def attend(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT, sinks_H):
    T = q_BTHK.shape[1]
    # The kernel has no scale of its own, so the queries are scaled.
    scaled_BTHK = (q_BTHK.astype(accum_dtype(q_BTHK)) * scoring.scale).astype(q_BTHK.dtype)
    padded = pad_time(BLOCKS[-1], (scaled_BTHK, k_BSGK, v_BSGK, segment_ids_BT))
    q_BHTK, k_BGSK, v_BGSK = (x.swapaxes(1, 2) for x in padded[:3])
    ids_BT = padded[3]
    ids = None if ids_BT is None else splash.SegmentIds(ids_BT, ids_BT)
    heads, length = q_BHTK.shape[1:3]
    sinks_H = None if sinks_H is None else _with_own_dtype(sinks_H)
    run = functools.partial(_kernel(heads, length, scoring), sinks=sinks_H)
    y_BHTK = jax.vmap(run)(q_BHTK, k_BGSK, v_BGSK, ids)
    return y_BHTK.swapaxes(1, 2)[:, :T]

  return on_each_device(attend, q_BTHK, k_BSGK, v_BSGK, segment_ids_BT, sinks_H)


@jax.custom_vjp
def _with_own_dtype(x: jax.Array) -> jax.Array:
  """x, whose gradient is cast to x's dtype: the kernel gives that of the sinks in the dtype of the queries."""
  return x


def _own_dtype_forward(x):
  return x, x[:0]


def _own_dtype_backward(empty, d):
  return (d.astype(empty.dtype),)


_with_own_dtype.defvjp(_own_dtype_forward, _own_dtype_backward)


def _kernel(heads: int, length: int, scoring: Scoring) -> Any:
  """A function of (q_HTK, k_GSK, v_GSK, segment ids, sinks) that returns [H, T, the values' head size]."""
  shape = (length, length)
  block = next(size for size in BLOCKS if length % size == 0)
  if scoring.window is None:
    mask = masks.CausalMask(shape)
  else:
    mask = masks.LocalMask(shape, (scoring.window - 1, 0), 0)
  sizes = splash.BlockSizes(
      block_q=block, block_kv=block, block_kv_compute=block, block_q_dkv=block, block_kv_dkv=block,
      block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block)
  return splash.make_splash_mha(masks.MultiHeadMask([mask] * heads), head_shards=1, q_seq_shards=1, block_sizes=sizes,
                                attn_logits_soft_cap=scoring.soft_cap, interpret=jax.default_backend() != 'tpu')
