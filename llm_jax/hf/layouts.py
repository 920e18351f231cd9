"""How our parameters lie in a tensor of theirs: a line of a table, read in both directions.

  'D H K -> (H K) D'     our axes, then theirs; (H K) is one axis. No arrow: the same.
  'D H K -> D (H K)+'    several of our parameters lie side by side where + stands: all heads of the first, then all of
  'R H K -> (H K+) R'    the second; or, with the + inside, the first's and the second's part of every head.
  'E D F -> F D'         an axis that theirs lack is numbered in their names: one tensor per expert.
  'D H K -> (H K~) D'    the last numbers of the axis, those that rotary positions turn, stand in pairs 0 1, 2 3, ... in
                         theirs, and as two halves in ours. Of parameters side by side they are in the last one.
  'C D -> D C^'          the two halves of the axis are swapped.
"""
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]
Index = tuple[slice, ...]
BLOCK = 1 << 18  # numbers


class Layout(NamedTuple):
  """A parsed line.

  numbered: the axis of ours that their names number, which the other fields do not count.
  pieces: axes of ours in the order of theirs, several where theirs are one.
  order: per axis of ours '', '~' or '^'.
  joined: where parameters lie side by side: (axis of theirs, place in it), or (axis, None) for whole groups; or None.
  """
  numbered: int | None
  pieces: tuple[tuple[int, ...], ...]
  order: tuple[str, ...]
  joined: tuple[int, int | None] | None


@functools.cache
def parse(line: str) -> Layout:
  left, _, right = line.partition(' -> ')
  ours, words = left.split(), (right or left).replace('(', '( ').replace(')', ' )').split()
  named = {word.strip('+~^') for word in words}
  numbered = next((axis for axis, name in enumerate(ours) if name not in named), None)
  if numbered is not None:
    ours.pop(numbered)
  pieces: list[tuple[int, ...]] = []
  order = [''] * len(ours)
  joined: tuple[int, int | None] | None = None
  group: list[int] | None = None  # the axes of an open parenthesis
  for word in words:
    if word == '(':
      group = []
    elif word[0] == ')':
      joined = (len(pieces), None) if '+' in word else joined
      pieces, group = [*pieces, tuple(group or ())], None
    else:
      axis = ours.index(word.strip('+~^'))
      order[axis] = word.replace('+', '')[1:]
      joined = (len(pieces), len(group or ())) if '+' in word else joined
      pieces, group = (pieces, [*group, axis]) if group is not None else ([*pieces, (axis,)], None)
  return Layout(numbered, tuple(pieces), tuple(order), joined)


def their_shape(line: str, shapes: Sequence[Shape]) -> Shape:
  """The shape of the tensor that holds parameters of `shapes` (the numbered axis left out)."""
  layout = parse(line)
  whole = lambda shape: [math.prod(shape[axis] for axis in piece) for piece in layout.pieces]
  result = whole(shapes[0])
  if layout.joined:
    place = layout.joined[0]
    result[place] = sum(whole(shape)[place] for shape in shapes)
  return tuple(result)


def to_ours(theirs: np.ndarray, line: str, shapes: Sequence[Shape], part: int, rotary: int, index: Index) -> np.ndarray:
  """The slice `index` of parameter number `part`, out of their tensor: a view wherever its numbers keep their order.

  Args:
    shapes: of all our parameters in this tensor.
    rotary: how many of a head's last numbers rotary positions turn.
  """
  layout = parse(line)
  moved, view = _moved(layout, shapes, part, rotary), _view(theirs, layout, shapes, part)
  view = view[tuple(slice(None) if axis in moved else cut for axis, cut in enumerate(index))]
  for axis, places in moved.items():
    view = np.take(view, places[index[axis]], axis)
  return view


def to_theirs(ours: Sequence[np.ndarray], line: str, rotary: int) -> np.ndarray:
  """The tensor of theirs that holds these parameters of ours."""
  layout, shapes = parse(line), [array.shape for array in ours]
  theirs = np.empty(their_shape(line, shapes), ours[0].dtype)
  for part, array in enumerate(ours):
    for axis, places in _moved(layout, shapes, part, rotary).items():
      array = np.take(array, np.argsort(places), axis)
    copy(_view(theirs, layout, shapes, part), array)
  return theirs


def copy(target: np.ndarray, source: np.ndarray) -> None:
  """`target[...] = source` in pieces that stay in the processor's cache: far faster where axes change places."""
  if source.size < BLOCK:
    target[...] = source
    return
  axis = int(np.argmax(source.strides))
  step = max(1, BLOCK * source.shape[axis] // source.size)
  for start in range(0, source.shape[axis], step):
    piece = (slice(None),) * axis + (slice(start, start + step),)
    target[piece] = source[piece].astype(target.dtype, order='K')


def _view(theirs: np.ndarray, layout: Layout, shapes: Sequence[Shape], part: int) -> np.ndarray:
  """Parameter number `part` inside their tensor, its axes in our order, its numbers in theirs."""
  unfolded, cut = _unfold(layout, shapes, part)
  axes = [axis for piece in layout.pieces for axis in piece]
  view = theirs.reshape(unfolded)[cut].reshape([shapes[part][axis] for axis in axes])
  return view.transpose(np.argsort(axes))


def _unfold(layout: Layout, shapes: Sequence[Shape], part: int) -> tuple[list[int], Index]:
  """The shape of their tensor with its axes taken apart, and where parameter number `part` lies in that."""
  unfolded, cut = [], ()
  for place, piece in enumerate(layout.pieces):
    sizes = [[shape[axis] for axis in piece] for shape in shapes]
    if layout.joined and layout.joined[0] == place:
      inner = layout.joined[1]
      widths = [math.prod(size) if inner is None else size[inner] for size in sizes]
      cut = (slice(None),) * (len(unfolded) + (inner or 0)) + (slice(sum(widths[:part]), sum(widths[:part + 1])),)
      sizes[part] = [sum(widths)] if inner is None else [*sizes[part][:inner], sum(widths), *sizes[part][inner + 1:]]
    unfolded += sizes[part]
  return unfolded, cut


def _moved(layout: Layout, shapes: Sequence[Shape], part: int, rotary: int) -> dict[int, np.ndarray]:
  """By axis whose numbers change places: where in theirs each number of ours stands."""
  moved, last = {}, part == len(shapes) - 1
  for axis, order in enumerate(layout.order):
    size = shapes[part][axis]
    if order == '^':
      moved[axis] = np.roll(np.arange(size), -(size // 2))
    elif order == '~' and last:
      kept, turned = np.arange(size - rotary), np.arange(size - rotary, size)
      moved[axis] = np.concatenate([kept, turned[0::2], turned[1::2]])
  return moved
