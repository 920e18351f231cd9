"""Needle in a haystack (Kamradt 2023): whether a model finds a fact anywhere in a text as long as its context."""
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from llm_jax.config.errors import require
from llm_jax.data.packing.needles import VALUES, Facts
from llm_jax.data.token_store import TokenStore
from llm_jax.data.tokenizers.base import Tokenizer
from llm_jax.decode.request import fetch
from llm_jax.modules.transformer import Transformer


@functools.partial(jax.jit, static_argnums=0)
def _last_choices(model: Transformer, params: Any, tokens_BT: jax.Array) -> jax.Array:
  """The likeliest ids after each of the last VALUES positions, int32 [batch, VALUES]."""
  x_BTD = model.apply({'params': params}, tokens_BT, method='features')
  return model.apply({'params': params}, x_BTD[:, -VALUES:], method='logits').argmax(-1)


def check_haystack(tokenizer: Tokenizer, haystack: TokenStore, seq_lens: Sequence[int]) -> None:
  """Refuses texts that needles cannot be put into: ConfigError."""
  Facts(tokenizer)
  require(haystack.num_tokens > max(seq_lens), 'needles.seq_lens', tuple(seq_lens),
          f'the held-out text has {haystack.num_tokens} tokens: ask for shorter ones, or raise val_fraction')


def find_needles(model: Transformer, params: Any, tokenizer: Tokenizer, haystack: TokenStore, seq_len: int, *,
                 depths: int = 5, rows: int = 16, batch_size: int = 8,
                 sharding: jax.sharding.Sharding | None = None) -> list[float]:
  """The share of facts found at each of `depths` evenly spaced depths, from the start of the context to its end.

  Each of `rows` texts a depth holds one fact, and its question is all that follows. Found means that the model's
  greedy answer is right: every word of it the likeliest one given those before. Texts and facts are the same for every
  model with this tokenizer.

  sharding: of [batch, time] arrays; None: one device.
  """
  needles, documents = Facts(tokenizer), []
  length = seq_len - needles.length - needles.question_length - VALUES
  for depth in range(depths):
    for row in range(rows):
      rng = np.random.default_rng((seq_len, depth, row))
      [fact] = facts = needles.draw(1, rng)
      start = rng.integers(haystack.num_tokens - length)
      text = np.asarray(haystack.tokens[start:start + length])
      planted = needles.plant(text, facts, [round(length * depth / max(depths - 1, 1))])
      documents.append(np.concatenate([planted, needles.line(fact)[:needles.question_length + VALUES]]))
  ids = np.array(documents, np.int32)
  found = []
  for first in range(0, len(ids), batch_size):
    batch = np.resize(ids[first:first + batch_size], (batch_size, ids.shape[1]))  # the last one starts over
    tokens = jax.make_array_from_callback((batch_size, seq_len), sharding, lambda i, b=batch: b[:, :-1][i]) \
      if sharding is not None else batch[:, :-1]
    right = (fetch(_last_choices(model, params, tokens)) == batch[:, -VALUES:]).all(axis=1)
    found.append(right[:len(ids) - first])
  return np.concatenate(found).reshape(depths, rows).mean(axis=1).tolist()
