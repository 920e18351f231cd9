"""All that the page shows of one model and one text.

Shapes: T time, V vocabulary, N new tokens.
"""
import dataclasses
from typing import Any

import numpy as np

from llm_jax.config.model.architecture import Architecture
from llm_jax.config.model.count import blocks
from llm_jax.data.tokenizers.base import Tokenizer, opened
from llm_jax.explain.lens import Candidates, Reading, candidates, lens
from llm_jax.explain.slots import SlotTable, cache_slots
from llm_jax.explain.trace import Trace, trace
from llm_jax.modules.cache import CacheBytes, cache_bytes

MOST_TOKENS = 128
MOST_WEIGHTS = 400_000  # attention weights of one page, unless more tokens are wanted


@dataclasses.dataclass(frozen=True)
class Explanation:
  """A model's forward pass over a text.

  name: of the model.
  texts: of the tokens, by id; those of the text and all that are predicted.
  readings: the logit lens, before the first layer and after every layer.
  dropped: tokens at the text's end that are left out.
  """
  name: str
  trace: Trace
  readings: tuple[Reading, ...]
  candidates: Candidates
  slots: tuple[SlotTable, ...]
  cache: CacheBytes
  texts: dict[int, str]
  dropped: int = 0

  @property
  def mean_loss(self) -> float:
    """Nats per token, over the tokens that follow another; NaN for a single token."""
    log_probs_T = self.readings[-1].next_log_prob_T[:-1]
    return float(-log_probs_T.mean()) if len(log_probs_T) else float('nan')


def explain(name: str, config: Architecture, params: Any, tokenizer: Tokenizer, text: str,
            max_tokens: int | None = None) -> Explanation:
  """Runs a model over a text and gathers what it did.

  Args:
    params: without adapters beside the weights.
    max_tokens: the text is cut after so many tokens; None: where the page would grow beyond a megabyte.

  Raises:
    ConfigError: the text is empty.
  """
  whole = [int(token) for token in opened(tokenizer, tokenizer.encode(text))]
  tokens = whole[:tokens_that_fit(config, max_tokens)]
  found = trace(config, params, tokens)
  readings = lens(config, params, found)
  drawn = candidates(found.logits_TV)
  shown = {*tokens, *drawn.tokens_TN.flatten().tolist()}
  for reading in readings:
    shown |= set(reading.top_T.tolist())
  names = {token: special for special, token in tokenizer.special_ids.items()}
  texts = {token: names.get(token) or token_text(tokenizer, token) for token in sorted(shown)}
  return Explanation(name, found, readings, drawn, cache_slots(config, len(tokens)),
                     cache_bytes(config, 1, len(tokens), np.float32), texts, len(whole) - len(tokens))


def tokens_that_fit(config: Architecture, max_tokens: int | None = None) -> int:
  """How many tokens are shown: as many as positions allow, and, where no number is given, as fit on a page."""
  heads = sum(block.attention.num_heads for block in blocks(config))
  fit = MOST_TOKENS
  while fit > 1 and heads * fit * (fit + 1) // 2 > MOST_WEIGHTS:
    fit -= 1
  limit = fit if max_tokens is None else max_tokens
  return limit if config.max_length is None else min(limit, config.max_length)


def token_text(tokenizer: Tokenizer, token: int) -> str:
  """A token as text; bytes that are no whole characters as `\\xe2`. A token without text is named by its id."""
  try:
    content = tokenizer.decode_bytes([token])
  except (IndexError, KeyError, ValueError, OverflowError):  # the embedding may have more rows than the tokenizer
    content = b''
  return content.decode('utf-8', 'backslashreplace') or f'#{token}'
