"""A conversation as the text that a chat template makes of it, with what is known of its parts.

Contents may hold the name of a control token. So that nobody can end a turn, or open one, by writing it, such names are
put between two marks before the template sees them; what stands between marks in the rendered text is encoded as plain
text. The marks are characters for private use, and are taken out of contents that hold them.
"""
import bisect
import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Span = tuple[int, int]  # of characters: the first, and the one behind the last

OPEN, CLOSE = '\U000f0000', '\U000f0001'  # transformers takes the same


class Piece(NamedTuple):
  """A stretch of a rendered text.   is_guarded: it is a control token's name that is to be text."""
  text: str
  is_guarded: bool = False


@dataclasses.dataclass(frozen=True)
class Rendered:
  """A conversation as text.

  pieces: the text in order: as one, but for names of control tokens that somebody wrote; the first is not guarded.
  learnt: what the assistant says, with what ends its turn.
  """
  pieces: tuple[Piece, ...]
  learnt: tuple[Span, ...] = ()

  @property
  def text(self) -> str:
    return ''.join(piece.text for piece in self.pieces)


class Marker:
  """Puts the names of control tokens between marks, and takes the marks out of a rendered text."""

  def __init__(self, names: Sequence[str]):
    longest_first = sorted(filter(None, names), key=len, reverse=True)
    name = '|'.join(map(re.escape, longest_first)) or '(?!)'  # (?!) matches nothing
    self._name = re.compile(name)
    self._marked = re.compile(f'{OPEN}({name}){CLOSE}|[{OPEN}{CLOSE}]')

  def mark(self, value: Any) -> Any:
    """The same with marked texts: of a text, or of lists and dicts of them. Keys are not marked."""
    if isinstance(value, str):
      plain = value.replace(OPEN, '').replace(CLOSE, '')
      return self._name.sub(f'{OPEN}\\g<0>{CLOSE}', plain)
    if isinstance(value, dict):
      return {key: self.mark(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
      return [self.mark(entry) for entry in value]
    return value

  def rendered(self, text: str, learnt: Sequence[Span] = ()) -> Rendered:
    """A text in which names are marked.   learnt: spans of it, which are given for the text without marks."""
    texts = self._marked.split(text)  # a text, a name or None for a mark that stands alone, a text, ...
    pieces = [Piece(part, bool(i % 2)) for i, part in enumerate(texts) if i == 0 or part]
    places = [i for i, character in enumerate(text) if character in (OPEN, CLOSE)] if len(texts) > 1 else []
    unmarked: Callable[[int], int] = lambda place: place - bisect.bisect_left(places, place)
    return Rendered(tuple(pieces), tuple((unmarked(start), unmarked(end)) for start, end in learnt))


def in_spans(places: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
  """Whether each token, whose place in the text is given, has a part in one of the spans.

  Some tokenizers leave white space out of a token's place: it reaches back to the end of the token before.
  """
  found: list[bool] = []
  previous_end = 0
  for start, end in places:
    start = min(start, previous_end) if previous_end < end else start
    is_empty = start == end
    found.append(any(a < end and start < b or is_empty and a <= start < b for a, b in spans))
    previous_end = max(previous_end, end)
  return found
