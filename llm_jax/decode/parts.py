"""Generation with a decoder that turns long sequences otherwise than short ones (`LongRoPEScaling`): in parts, between
which the texts are read anew.

A text of n tokens predicts the next one as the decoder of sequences of n tokens does (`Architecture.at_length`). So
every token is what a pass over the whole text before it gives, and what `transformers` gives for a single text.
"""
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from llm_jax.config.model.architecture import Architecture

NOTHING = [0]  # the prompt of a row that takes no part


class Part(NamedTuple):
  """Texts between two lengths.

  config: the decoder that they all see.
  prompts: by row, the text so far, or NOTHING.
  limits: by row, how many of its next tokens count.
  """
  config: Architecture
  prompts: list[list[int]]
  limits: list[int]

  @property
  def max_new_tokens(self) -> int:
    return max(self.limits)


class Rows:
  """Prompts, and what is generated after each.

  tokens, log_probs: by row, the new ones.
  """

  def __init__(self, config: Architecture, prompts: Sequence[np.ndarray], max_new_tokens: int,
               stop_tokens: Sequence[int]):
    self._config, self._max_new_tokens, self._stop_tokens = config, max_new_tokens, set(stop_tokens)
    self._prompts: list[list[int]] = [prompt.tolist() for prompt in prompts]
    self.tokens: list[list[int]] = [[] for _ in prompts]
    self.log_probs: list[list[float]] = [[] for _ in prompts]

  def parts(self) -> Iterator[Part]:
    """The parts in order. The tokens of one must be added before the next is asked for."""
    bounds = (0, *self._config.switch_lengths, math.inf)
    for shortest, longest in itertools.pairwise(bounds):
      texts = [prompt + new for prompt, new in zip(self._prompts, self.tokens, strict=True)]
      limits = [self._limit(row, len(text), longest) if shortest < len(text) <= longest else 0
                for row, text in enumerate(texts)]
      if any(limits):
        prompts = [text if limit else NOTHING for text, limit in zip(texts, limits, strict=True)]
        yield Part(self._config.at_length(int(shortest) + 1), prompts, limits)

  def _limit(self, row: int, length: int, longest: float) -> int:
    """How many tokens a text of `length` takes before it has more than `longest`; 0 if it has ended."""
    new = self.tokens[row]
    if new and new[-1] in self._stop_tokens:
      return 0
    return int(min(self._max_new_tokens - len(new), longest - length + 1))

  def add(self, part: Part, tokens: Sequence[Sequence[int]], log_probs: Sequence[Sequence[float]] | None = None
          ) -> list[list[int]]:
    """Keeps the next tokens of each row that count, and returns them."""
    added = []
    for row, new in enumerate(tokens):
      limit = part.limits[row] - (len(self._prompts[row]) + len(self.tokens[row]) - len(part.prompts[row]))
      counted = list(new[:limit]) if part.limits[row] else []
      self.tokens[row] += counted
      if log_probs is not None:
        self.log_probs[row] += log_probs[row][:len(counted)]
      added.append(counted)
    return added
