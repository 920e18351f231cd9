"""Needle in a haystack (Kamradt 2023): whether a model finds a fact anywhere in a text as long as its context.

Shapes: B batch, T time, D model width, V vocabulary.
"""
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from llm_jax.config.errors import require
from llm_jax.config.evaluations import Needles
from llm_jax.config.rows import TEXT
from llm_jax.data.packing.needles import VALUES, Facts
from llm_jax.data.token_store import TokenStore
from llm_jax.data.tokenizers.base import Tokenizer
from llm_jax.decode.request import fetch
from llm_jax.evaluation.held_out import eval_batches, evaluate
from llm_jax.evaluation.protocol import Evaluated, Evaluation, Metrics, Moment, Result
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.frozen import Frozen
from llm_jax.objectives.language_model import LanguageModelObjective
from llm_jax.sharding.rules import batch_sharding
from llm_jax.tracking.display import HeatMap

SECTION = 'Needles in a haystack'
NOTE = ('A fact is planted at a depth of held-out text (0 % is its start) and asked for at its end: the share of texts '
        'in which the model answers right.')


class NeedlesEvaluation(Evaluation):
  """`needles_L`, the share of needles found at each depth of a text of L tokens, and, where the stage comes from one of
  shorter sequences, `short_loss`, the held-out loss at their length."""
  at_start = True
  config: Needles

  @property
  def every(self) -> int:
    return self.config.every

  def check(self) -> None:
    check_haystack(self.setup.tokenizer, self.setup.validation.haystack, self.config.seq_lens)

  def run(self, model: Evaluated, start: Metrics) -> Result:
    transformer = self._transformer(model.moment)
    metrics = self._find(transformer, model.params)
    short_loss = self._short_loss(transformer, model)
    if short_loss is not None:
      metrics['short_loss'] = short_loss
    if model.moment is Moment.START:
      return Result(metrics)
    return Result(metrics, self._lines(metrics, start), headline=self._headline(metrics, start),
                  display=(self._heat_map(metrics, start),))

  def ends_stage(self, start: Metrics, now: Metrics) -> bool:
    if self.config.target_recall is None:
      return False
    lowest = min(min(_shares(now, seq_len)) for seq_len in self.config.seq_lens)
    loss_limit = _number(start, 'short_loss', math.inf) * (1 + self.config.max_short_loss_increase)
    return lowest >= self.config.target_recall and _number(now, 'short_loss', -math.inf) <= loss_limit

  def _transformer(self, moment: Moment) -> Transformer:
    """At its start the model has the positions of the stage that it comes from."""
    setup, parent = self.setup, self.setup.parent
    if moment is Moment.START and parent is not None:
      return Transformer(setup.run.model_of(parent), setup.execution)
    return Transformer(setup.model, setup.execution)

  def _find(self, transformer: Transformer, params: Any) -> dict[str, float | list[float]]:
    setup, config = self.setup, self.config
    found: dict[str, float | list[float]] = {}
    for seq_len in config.seq_lens:
      found[_metric(seq_len)] = find_needles(
        transformer, params, setup.tokenizer, setup.validation.haystack, seq_len, depths=config.depths,
        rows=config.rows, batch_size=setup.phase.rows, sharding=batch_sharding(setup.mesh))
    return found

  def _short_loss(self, transformer: Transformer, model: Evaluated) -> float | None:
    """The loss on the text that scored the stage before, where its rows are shorter."""
    setup, parent = self.setup, self.setup.parent
    if parent is None:
      return None
    is_text = parent.validation_data.rows == TEXT
    validation = setup.data[parent.name].validation
    if not is_text or validation is None or validation.seq_len >= setup.phase.seq_len:
      return None
    batches = functools.partial(eval_batches, setup, validation, model.heartbeat)
    return evaluate(LanguageModelObjective(transformer), model.params, Frozen(), batches)['loss']

  def _lines(self, metrics: Metrics, start: Metrics) -> tuple[str, ...]:
    lines = []
    for seq_len in self.config.seq_lens:
      before = f'{_recall(_shares(start, seq_len))} -> ' if _metric(seq_len) in start else ''
      lines.append(f'needles found in {seq_len:,} tokens: {before}{_recall(_shares(metrics, seq_len))}')
    if 'short_loss' in metrics:
      before = f'{start["short_loss"]:.4f} -> ' if 'short_loss' in start else ''
      lines.append(f'held-out loss at the sequence length before: {before}{metrics["short_loss"]:.4f}')
    return tuple(lines)

  def _headline(self, metrics: Metrics, start: Metrics) -> str | None:
    """What the stage has done for the longest text, where it has done anything."""
    longest = max(self.config.seq_lens)
    if _metric(longest) not in start:
      return None
    before, after = _mean(_shares(start, longest)), _mean(_shares(metrics, longest))
    return f'{before:.0%} → {after:.0%} found in {longest:,}' if after > before else None

  def _heat_map(self, metrics: Metrics, start: Metrics) -> HeatMap:
    depths = self.config.depths
    columns = tuple(f'{100 * i / max(depths - 1, 1):.0f} %' for i in range(depths))
    rows = []
    for seq_len in sorted(self.config.seq_lens):
      after = tuple(_shares(metrics, seq_len))
      if _metric(seq_len) in start:
        rows.append((f'{seq_len:,} tokens, before', tuple(_shares(start, seq_len))))
        rows.append((f'{seq_len:,} tokens, after', after))
      else:
        rows.append((f'{seq_len:,} tokens', after))
    return HeatMap(SECTION, NOTE, self.setup.stage.name, columns, tuple(rows))


def _metric(seq_len: int) -> str:
  return f'needles_{seq_len}'


def _shares(metrics: Metrics, seq_len: int) -> list[float]:
  """The recall at each depth of a text of that length."""
  found = metrics[_metric(seq_len)]
  return found if isinstance(found, list) else [found]


def _number(metrics: Metrics, name: str, default: float) -> float:
  found = metrics.get(name, default)
  return default if isinstance(found, list) else found


def _mean(shares: Sequence[float]) -> float:
  return sum(shares) / len(shares)


def _recall(shares: Sequence[float]) -> str:
  return f'{_mean(shares):.0%} (at the worst depth {min(shares):.0%})'



@functools.partial(jax.jit, static_argnums=0)
def _last_choices(model: Transformer, params: Any, tokens_BT: jax.Array) -> jax.Array:
  """The likeliest ids after each of the last VALUES positions, int32 [batch, VALUES]."""
  x_BTD: Any = model.apply({'params': params}, tokens_BT, method='features')
  logits_BTV: Any = model.apply({'params': params}, x_BTD[:, -VALUES:], method='logits')
  return logits_BTV.argmax(-1)


def check_haystack(tokenizer: Tokenizer, haystack: TokenStore, seq_lens: Sequence[int]) -> None:
  """Refuses texts that needles cannot be put into: ConfigError."""
  Facts(tokenizer)
  require(haystack.num_tokens > max(seq_lens), 'seq_lens', tuple(seq_lens),
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
  ids = _make_texts(Facts(tokenizer), haystack, seq_len, depths, rows)
  found = []
  for first in range(0, len(ids), batch_size):
    batch = np.resize(ids[first:first + batch_size], (batch_size, ids.shape[1]))  # the last one starts over
    choices = fetch(_last_choices(model, params, _place(batch[:, :-1], sharding)))
    is_right = (choices == batch[:, -VALUES:]).all(axis=1)
    found.append(is_right[:len(ids) - first])
  return np.concatenate(found).reshape(depths, rows).mean(axis=1).tolist()


def _make_texts(needles: Facts, haystack: TokenStore, seq_len: int, depths: int, rows: int) -> np.ndarray:
  """int32 [depths x rows, seq_len + 1]: a stretch of the haystack with one fact in it, its question, its answer."""
  length = seq_len - needles.length - needles.question_length - VALUES
  texts = []
  for depth in range(depths):
    place = round(length * depth / max(depths - 1, 1))
    for row in range(rows):
      rng = np.random.default_rng((seq_len, depth, row))
      facts = needles.draw(1, rng)
      start = rng.integers(haystack.num_tokens - length)
      text = np.asarray(haystack.tokens[start:start + length])
      question = needles.line(facts[0])[:needles.question_length + VALUES]
      texts.append(np.concatenate([needles.plant(text, facts, [place]), question]))
  return np.array(texts, np.int32)


def _place(tokens: np.ndarray, sharding: jax.sharding.Sharding | None) -> jax.Array | np.ndarray:
  if sharding is None:
    return tokens
  return jax.make_array_from_callback(tokens.shape, sharding, lambda index: tokens[index])
