"""Attention as PyTorch computes it in float64, and what is compared with it."""
import numpy as np
import torch


def normal(seed, *shape, dtype=np.float32):
  return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def close(got, want, tolerance=1e-6, scale=None):
  """Relative to `scale`, by default the largest entry: what float32 sums can promise."""
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  assert got.shape == want.shape
  assert np.abs(got - want).max() <= tolerance * (np.abs(want).max() if scale is None else scale)


def torch_attention(q, k, v, segments=None, dy=None, window=None, soft_cap=None, scale=None, sinks=None):
  """float64, all scores at once: the result and, with dy, the gradients in q, k, v and the sinks, where there are some.

  As gpt-oss in transformers does it: the sinks are one more column of scores, which is dropped after the softmax.
  """
  q, k, v = (torch.tensor(np.asarray(a, np.float64), requires_grad=True) for a in (q, k, v))
  T, repeats = q.shape[1], q.shape[2] // k.shape[2]
  keys, values = (a.repeat_interleave(repeats, dim=2) for a in (k, v))
  scores = torch.einsum('bthk,bshk->bhts', q, keys) * (q.shape[-1] ** -0.5 if scale is None else scale)
  if soft_cap is not None:
    scores = soft_cap * torch.tanh(scores / soft_cap)
  back = torch.arange(T)[:, None] - torch.arange(T)
  mask = (back >= 0) & (back < (window or T))
  if segments is not None:
    segments = torch.tensor(segments)
    mask = mask & (segments[:, :, None] == segments[:, None])[:, None]
  scores = scores.masked_fill(~mask, -torch.inf)
  inputs = [q, k, v]
  if sinks is not None:
    sinks = torch.tensor(np.asarray(sinks, np.float64), requires_grad=True)
    inputs.append(sinks)
    column = sinks[None, :, None, None].expand(*scores.shape[:3], 1)
    scores = torch.cat([scores, column], -1)
  weights = scores.softmax(-1)[..., :T]
  y = torch.einsum('bhts,bshk->bthk', weights, values)
  if dy is None:
    return y.detach()
  return [y.detach(), *torch.autograd.grad(y, inputs, torch.tensor(np.asarray(dy, np.float64)))]


def packed(B, T):
  """Segment ids with several documents a row and padding (0) at the end of some."""
  ids = np.sort(np.random.default_rng(5).integers(1, 4, (B, T)), axis=1).astype(np.int32)
  ids[0, T - T // 5:] = 0
  return ids
