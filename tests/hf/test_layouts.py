"""The layout language against what each line says, written out by hand; whole, in slices, and back."""
import numpy as np
import pytest

from llm_jax.hf.layouts import parse, their_shape, to_ours, to_theirs

D, H, K, R, V = 6, 3, 4, 5, 2


def numbers(*shape):
  return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def pairs_to_halves(x, rotary):
  """Along the last axis: the last `rotary` numbers (0 1)(2 3).. become 0 2 .. 1 3 .."""
  rest, turned = x[..., :x.shape[-1] - rotary], x[..., x.shape[-1] - rotary:]
  return np.concatenate([rest, turned[..., ::2], turned[..., 1::2]], -1)


CASES = {
  # line: (shape of theirs, rotary, ours by hand)
  'V D': ((V, D), 0, lambda t: [t]),
  'D F -> F D': ((V, D), 0, lambda t: [t.T]),
  'H K -> (H K)': ((H * K,), 0, lambda t: [t.reshape(H, K)]),
  'D H K -> (H K) D': ((H * K, D), 0, lambda t: [t.reshape(H, K, D).transpose(2, 0, 1)]),
  'H K D -> D (H K)': ((D, H * K), 0, lambda t: [t.reshape(D, H, K).transpose(1, 2, 0)]),
  'D H K -> D (H K)+': ((D, 3 * H * K), 0, lambda t: [p.reshape(D, H, K) for p in np.split(t, 3, axis=1)]),
  'H K -> (H K)+': ((2 * H * K,), 0, lambda t: [p.reshape(H, K) for p in np.split(t, 2)]),
  'R H K -> (H K+) R': ((H * (K + V), R), 0, lambda t: [
    p.transpose(2, 0, 1) for p in np.split(t.reshape(H, K + V, R), [K], axis=1)]),
  'D R -> R+~ D': ((R + K, D), K, lambda t: [t[:R].T, pairs_to_halves(t[R:].T, K)]),
  'D H K -> (H K~) D': ((H * K, D), K, lambda t: [pairs_to_halves(t.reshape(H, K, D).transpose(2, 0, 1), K)]),
  'R H K -> (H K~) R': ((H * (V + K), R), K, lambda t: [
    pairs_to_halves(t.reshape(H, V + K, R).transpose(2, 0, 1), K)]),
  'C D -> D C^': ((D, 2 * D), 0, lambda t: [np.concatenate([t[:, D:], t[:, :D]], axis=1).T]),
}


@pytest.mark.parametrize('line', CASES)
def test_lines(line):
  shape, rotary, by_hand = CASES[line]
  theirs = numbers(*shape)
  wanted = by_hand(theirs)
  shapes = [part.shape for part in wanted]
  assert their_shape(line, shapes) == shape
  for part, want in enumerate(wanted):
    whole = (slice(None),) * want.ndim
    np.testing.assert_array_equal(to_ours(theirs, line, shapes, part, rotary, whole), want)
    for axis, size in enumerate(want.shape):
      index = whole[:axis] + (slice(size // 2, size),) + whole[axis + 1:]
      np.testing.assert_array_equal(to_ours(theirs, line, shapes, part, rotary, index), want[index])
  back = to_theirs(wanted, line, rotary)
  np.testing.assert_array_equal(back, theirs)
  assert back.flags.c_contiguous


def test_numbers_in_their_order_are_not_copied():
  for line, (shape, rotary, by_hand) in CASES.items():
    theirs = numbers(*shape)
    shapes = [part.shape for part in by_hand(theirs)]
    got = to_ours(theirs, line, shapes, 0, rotary, (slice(None),) * len(shapes[0]))
    assert np.shares_memory(got, theirs) or '~' in line or '^' in line, line


def test_numbered_axis():
  layout = parse('E D F -> F D')
  assert layout.numbered == 0 and their_shape('E D F -> F D', [(D, K)]) == (K, D)
