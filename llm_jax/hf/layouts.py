"""Layouts: how a tensor of theirs holds one or several of our parameters. A line of text, used in both directions.

  'D H K -> (H K) D'     our axes, then theirs; (H K) is one axis of theirs. Without an arrow both are the same.
  'D H K -> D (H K)+'    the tensor holds several of our parameters, concatenated along the axis with the +:
  'R H K -> (H K+) R'    all heads of the first, then all of the second. With the + inside, it alternates between the
                         two in every head.
  'E F -> E (F 1+)'      ... and number by number.
  'E D F -> F D'         an axis that their tensors lack is numbered in their names: one tensor per expert.
  'D H K -> (H K~) D'    the last numbers of the axis, which rotary positions turn, are in pairs (0 1, 2 3, ...) in
                         their tensor, and in two halves in ours. Of several parameters, the last one has them.
  'I D -> D I^'          the two halves of the axis are swapped.
"""
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]
Index = tuple[slice, ...]
BLOCK = 1 << 18  # how many numbers `copy` moves at a time


class Layout(NamedTuple):
  """A parsed line.

  numbered: the index of our axis that their names number, or None. The other fields do not count this axis.
  pieces: for each axis of theirs, the indices of our axes in it.
  order: for each axis of ours '', '~' or '^'.
  joined: along which axis of theirs parameters are concatenated, and at which of our axes in it (None: outside of all;
    their count: behind the last, number by number); or None.
  """
  numbered: int | None
  pieces: tuple[tuple[int, ...], ...]
  order: tuple[str, ...]
  joined: tuple[int, int | None] | None


@functools.cache
def parse(line: str) -> Layout:
  left, _, right = line.partition(' -> ')
  ours = left.split()
  words = (right or left).replace('(', '( ').replace(')', ' )').split()
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
      if '+' in word:
        joined = (len(pieces), None)
      pieces.append(tuple(group or ()))
      group = None
    elif word == '1+':
      joined = (len(pieces), len(group or ()))
    else:
      axis = ours.index(word.strip('+~^'))
      order[axis] = word.replace('+', '')[1:]
      if '+' in word:
        joined = (len(pieces), len(group or ()))
      if group is None:
        pieces.append((axis,))
      else:
        group.append(axis)
  return Layout(numbered, tuple(pieces), tuple(order), joined)


def their_shape(line: str, shapes: Sequence[Shape]) -> Shape:
  """The shape of the tensor that holds parameters of these shapes (without the numbered axis)."""
  layout = parse(line)
  whole = lambda shape: [math.prod(shape[axis] for axis in piece) for piece in layout.pieces]
  result = whole(shapes[0])
  if layout.joined:
    place = layout.joined[0]
    result[place] = sum(whole(shape)[place] for shape in shapes)
  return tuple(result)


def to_ours(theirs: np.ndarray, line: str, shapes: Sequence[Shape], part: int, rotary: int, index: Index) -> np.ndarray:
  """The slice `index` of parameter number `part` in their tensor. It is a view if the numbers keep their order.

  Args:
    shapes: of all our parameters in this tensor.
    rotary: how many numbers at the end of a head rotary positions turn.
  """
  layout = parse(line)
  moved = _moved(layout, shapes, part, rotary)
  view = _view(theirs, layout, shapes, part)
  # An axis whose numbers change places is first taken whole, then permuted and cut in one step.
  view = view[tuple(slice(None) if axis in moved else cut for axis, cut in enumerate(index))]
  for axis, places in moved.items():
    view = np.take(view, places[index[axis]], axis)
  return view


def to_theirs(ours: Sequence[np.ndarray], line: str, rotary: int) -> np.ndarray:
  """Their tensor with these parameters of ours."""
  layout = parse(line)
  shapes = [array.shape for array in ours]
  theirs = np.empty(their_shape(line, shapes), ours[0].dtype)
  for part, array in enumerate(ours):
    for axis, places in _moved(layout, shapes, part, rotary).items():
      array = np.take(array, np.argsort(places), axis)
    copy(_view(theirs, layout, shapes, part), array)
  return theirs


def copy(target: np.ndarray, source: np.ndarray) -> None:
  """`target[...] = source`, in pieces that fit in the processor's cache: far faster if axes change places."""
  if source.size < BLOCK:
    target[...] = source
    return
  axis = int(np.argmax(source.strides))
  step = max(1, BLOCK * source.shape[axis] // source.size)
  for start in range(0, source.shape[axis], step):
    piece = (slice(None),) * axis + (slice(start, start + step),)
    target[piece] = source[piece].astype(target.dtype, order='K')


def _view(theirs: np.ndarray, layout: Layout, shapes: Sequence[Shape], part: int) -> np.ndarray:
  """A view of parameter number `part` in their tensor, with the axes in our order and the numbers in their order."""
  unfolded, cut = _unfold(layout, shapes, part)
  axes = [axis for piece in layout.pieces for axis in piece]
  view = theirs.reshape(unfolded)[cut].reshape([shapes[part][axis] for axis in axes])
  return view.transpose(np.argsort(axes))


def _unfold(layout: Layout, shapes: Sequence[Shape], part: int) -> tuple[list[int], Index]:
  """The shape of their tensor with every axis of ours as an axis of its own, and the slice of parameter number
  `part`."""
  unfolded: list[int] = []
  cut: Index = ()
  for place, piece in enumerate(layout.pieces):
    sizes = [[shape[axis] for axis in piece] for shape in shapes]  # of this piece, for each parameter
    own = sizes[part]
    if layout.joined and layout.joined[0] == place:
      inner = layout.joined[1]
      if inner is None:
        widths = [math.prod(size) for size in sizes]
        own, before = [sum(widths)], len(unfolded)
      else:
        widths = [[*size, 1][inner] for size in sizes]
        own, before = [*own[:inner], sum(widths), *own[inner + 1:]], len(unfolded) + inner
      start = sum(widths[:part])
      cut = (slice(None),) * before + (slice(start, start + widths[part]),)
    unfolded += own
  return unfolded, cut


def _moved(layout: Layout, shapes: Sequence[Shape], part: int, rotary: int) -> dict[int, np.ndarray]:
  """For each axis whose numbers change places, the index in their tensor of each number of ours."""
  moved = {}
  last = part == len(shapes) - 1
  for axis, order in enumerate(layout.order):
    size = shapes[part][axis]
    if order == '^':
      moved[axis] = np.roll(np.arange(size), -(size // 2))
    elif order == '~' and last:
      kept, turned = np.arange(size - rotary), np.arange(size - rotary, size)
      moved[axis] = np.concatenate([kept, turned[0::2], turned[1::2]])
  return moved
