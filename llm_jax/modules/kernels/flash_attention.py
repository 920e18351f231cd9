"""Causal attention for TPU: jax's own Pallas kernel, which never holds more scores than those of a block (Dao et al.
2022, "FlashAttention"), and skips the blocks that the causal mask and the window hide."""
import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from llm_jax.modules.kernels import wide
from llm_jax.modules.kernels.on_devices import on_each_device
from llm_jax.modules.kernels.scores import Form, pad_time

BLOCKS = 512, 256, 128  # queries and keys of a block: the first that divides the length, which is padded for the last


def flash_attention(q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, segment_ids_BT: jax.Array | None,
                    form: Form) -> jax.Array:
  """`causal_attention` with the score in one argument. Elsewhere than on TPU it is interpreted, which is slow."""
  def attend(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT):
    T, scaled_BTHK = q_BTHK.shape[1], (q_BTHK.astype(wide(q_BTHK)) * form.scale).astype(q_BTHK.dtype)
    *qkv, ids_BT = pad_time(BLOCKS[-1], scaled_BTHK, k_BSGK, v_BSGK, segment_ids_BT)
    q_BHTK, k_BGSK, v_BGSK = (x.swapaxes(1, 2) for x in qkv)
    ids = None if ids_BT is None else splash.SegmentIds(ids_BT, ids_BT)
    y_BHTK = jax.vmap(_kernel(*q_BHTK.shape[1:3], form))(q_BHTK, k_BGSK, v_BGSK, ids)
    return y_BHTK.swapaxes(1, 2)[:, :T]

  return on_each_device(attend, q_BTHK, k_BSGK, v_BSGK, segment_ids_BT)


def _kernel(heads: int, length: int, form: Form):
  """(q_HTK, k_GSK, v_GSK, segment ids) -> [H, T, the values' head size]."""
  shape, block = (length, length), next(size for size in BLOCKS if length % size == 0)
  mask = masks.CausalMask(shape) if form.window is None else masks.LocalMask(shape, (form.window - 1, 0), 0)
  sizes = splash.BlockSizes(*[block] * 8)
  return splash.make_splash_mha(masks.MultiHeadMask([mask] * heads), head_shards=1, q_seq_shards=1, block_sizes=sizes,
                                attn_logits_soft_cap=form.soft_cap, interpret=jax.default_backend() != 'tpu')
