"""From tokens, as a model gives them one by one, to text that can be printed."""
from collections.abc import Iterable, Iterator, Sequence

from llm_jax.data.tokenizers.base import Tokenizer

UNFINISHED = '\N{REPLACEMENT CHARACTER}'  # what a tokenizer gives for bytes that are no whole character


def text_pieces(tokenizer: Tokenizer, before: Sequence[int], tokens: Iterable[int]) -> Iterator[str]:
  """Text as soon as its bytes are whole characters; bytes that never become one are shown as U+FFFD.

  before: tokens that the text goes on from. A token is decoded together with those before it, since some tokenizers
    drop the space of a first word.
  """
  ids = list(before)
  start = 0  # ids[start:] are decoded again with every new token
  printed = len(ids)  # ids[:printed] have been printed
  for token in tokens:
    ids.append(token)
    old = tokenizer.decode(ids[start:printed])
    new = tokenizer.decode(ids[start:])
    whole = old.rstrip(UNFINISHED)  # `before` may end inside a character, which is printed when it is whole
    is_whole = len(new) > len(whole) and not new.endswith(UNFINISHED)
    if is_whole:
      yield new[len(whole):]
      if whole == old:
        start = printed
      printed = len(ids)
  yield tokenizer.decode(ids[start:])[len(tokenizer.decode(ids[start:printed])):]


def up_to_stop(stops: Sequence[str], pieces: Iterable[str]) -> Iterator[str]:
  """Text up to the first of `stops`, which is left out; what may be the beginning of one waits for what follows."""
  text = ''
  for piece in pieces:
    text += piece
    found = [text.index(stop) for stop in stops if stop in text]
    if found:
      yield text[:min(found)]
      return
    ready = len(text) - max((_overlap(stop, text) for stop in stops), default=0)
    yield text[:ready]
    text = text[ready:]
  yield text


def _overlap(stop: str, text: str) -> int:
  """Characters at the end of `text` that `stop` begins with."""
  return max((length for length in range(1, len(stop)) if text.endswith(stop[:length])), default=0)
