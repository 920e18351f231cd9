"""What a model must beat to have learnt something: an interpolated trigram model, and the compressor `xz -9`."""
import itertools
import lzma
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from llm_jax.config.evaluations import Baselines
from llm_jax.config.ramp import spans
from llm_jax.config.rows import TEXT
from llm_jax.config.stage import Stage
from llm_jax.evaluation.protocol import Evaluated, Evaluation, Metrics, Result

ORDERS = 4        # uniform, unigram, bigram, trigram
BUCKETS = 2 + 24  # of contexts, by how often they were seen: see TrigramModel.bucket
EM_STEPS = 40


class BaselinesEvaluation(Evaluation):
  """Bits per byte of a trigram model fitted on the tokens that the stage and those before it were trained on, and of
  `xz -9`, on the validation text."""
  config: Baselines

  def applies(self) -> bool:
    """Whether all the data is text, and anything was trained on."""
    stage = self.setup.stage
    datas = [stage.validation_data, *(each.data for each in self._stages())]
    all_text = all(data.rows == TEXT and data.template is None for data in datas)
    return self.setup.has_validation and all_text and stage.steps > 0

  def run(self, model: Evaluated, start: Metrics) -> Result:
    """Only the primary process computes: the others need none of it."""
    trained = self._steps_trained(model.step)
    if trained is None or not self.setup.primary:
      return Result()
    tokens = sum(stage.tokens_after(steps) for stage, steps in trained)
    if tokens > self.config.max_tokens:
      return Result()
    validation = self.setup.validation
    trigram = trigram_bits_per_byte(self._tokens_read(trained), validation.token_documents(),
                                    self.setup.tokenizer.vocab_size, validation.num_bytes)
    metrics: dict[str, float | list[float]] = {'trigram_bits_per_byte': trigram}
    if not validation.changed:  # else these would not be the same bytes
      metrics['xz_bits_per_byte'] = xz_bits_per_byte(validation.byte_documents())
    shown = ', '.join(f'{name.removesuffix("_bits_per_byte")} {value:.4f}' for name, value in metrics.items())
    return Result(metrics, (f'the same bytes: {shown} bits per byte',))

  def _stages(self) -> tuple[Stage, ...]:
    return *self.setup.run.ancestors(self.setup.stage), self.setup.stage

  def _steps_trained(self, step: int) -> list[tuple[Stage, int]] | None:
    """Each stage with the steps that it took; None where checkpoints are gone, so that nobody knows."""
    *earlier, last = self._stages()
    trained = []
    for stage in earlier:
      saved = self.setup.saved_steps(stage.name)
      if not saved:
        return None
      trained.append((stage, saved[0]))
    return [*trained, (last, step)]

  def _tokens_read(self, trained: Sequence[tuple[Stage, int]]) -> Iterator[np.ndarray]:
    pieces = []
    for stage, steps in trained:
      for phase, samples in spans(stage.phases, stage.samples_after(steps)):
        pieces.append(self.setup.data[stage.name].train[phase.seq_len].tokens_seen(samples))
    return itertools.chain.from_iterable(pieces)


def bits_per_byte(total_nats: float, num_bytes: int) -> float:
  """A summed negative log-likelihood in nats, as bits per byte of the text that was predicted."""
  return total_nats / math.log(2) / num_bytes


def xz_bits_per_byte(held_out_bytes: Iterable[bytes]) -> float:
  """Bits per byte of the documents concatenated and compressed as `xz -9` does (it needs some 700 MB of memory)."""
  compressor = lzma.LZMACompressor(format=lzma.FORMAT_XZ, preset=9)
  read, written = 0, 0
  for document in held_out_bytes:
    read += len(document)
    written += len(compressor.compress(document))
  written += len(compressor.flush())
  return 8 * written / read if read else math.nan


def trigram_bits_per_byte(train_token_documents: Iterable[np.ndarray], held_out_token_documents: Iterable[np.ndarray],
                          vocab_size: int, num_bytes: int, seed: int = 0, left_out: float = 0.05) -> float:
  """Held-out bits per byte of a trigram model fitted on the training documents.

  Documents are token ids as the model sees them, with those around them: every token but the first of each is
  predicted, and nothing is known from the document before.

  num_bytes: bytes of the held-out text.   seed: shuffles the documents before `left_out` of their tokens is set aside,
  out of the counts, to fit the interpolation weights (deleted interpolation, Jelinek & Mercer 1980); then everything
  is counted.
  """
  held_out = trigrams(held_out_token_documents, vocab_size)
  documents = list(train_token_documents)
  documents = [documents[i] for i in np.random.default_rng(seed).permutation(len(documents))]
  train = trigrams(documents, vocab_size)
  cut = len(train[0]) - math.ceil(len(train[0]) * left_out)
  weights = TrigramModel([x[:cut] for x in train], vocab_size).fit_weights([x[cut:] for x in train])
  probabilities = TrigramModel(train, vocab_size, weights).probabilities(held_out)
  return bits_per_byte(-float(np.log(probabilities).sum()), num_bytes)


def trigrams(documents: Iterable[np.ndarray], vocab_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(u, v, w), int64 [predicted tokens] each: w follows u v. Before a document's first token u is `vocab_size`."""
  documents = [np.asarray(d, np.int64) for d in documents if len(d) > 1]
  if not documents:
    nothing = np.zeros(0, np.int64)
    return nothing, nothing, nothing
  tokens = np.concatenate(documents)
  starts = np.cumsum([0] + [len(d) for d in documents[:-1]])
  before = np.concatenate([[vocab_size], tokens[:-1]])
  before[starts] = vocab_size
  predicted = np.ones(len(tokens), bool)
  predicted[starts] = False
  at = np.flatnonzero(predicted)
  return before[at - 1], tokens[at - 1], tokens[at]


class TrigramModel:
  """p(w | u v) = sum over k of weights[bucket(u v), k] p_k(w | u v), k = uniform, unigram, bigram, trigram.

  The p_k are relative frequencies. A context's weights depend on how often it was seen (Jelinek & Mercer's buckets),
  and give nothing to an order whose context was never seen: so every p(. | u v) sums to one.
  """

  def __init__(self, events: Sequence[np.ndarray], vocab_size: int, weights: np.ndarray | None = None):
    """events: `trigrams(...)`. weights: [BUCKETS, ORDERS], default equal shares of the orders that a bucket has."""
    u, v, w = events
    self._base = vocab_size + 1  # one id more: the place before a document
    if self._base ** 3 > 2 ** 63:
      raise ValueError(f'vocab_size = {vocab_size}: use at most 2,097,150 (three ids share one 64-bit key)')
    self.vocab_size, self.num_events = vocab_size, len(w)
    self._unigrams = np.bincount(w, minlength=vocab_size)
    self._context_1 = np.bincount(v, minlength=self._base)
    self._bigrams = np.unique(v * self._base + w, return_counts=True)
    self._context_2 = np.unique(u * self._base + v, return_counts=True)
    self._trigrams = np.unique((u * self._base + v) * self._base + w, return_counts=True)
    self.weights = _equal_weights() if weights is None else weights

  def bucket(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """0: v was never a context. 1: u v never was. 2 + floor(log2 c): u v was, c times."""
    pair = _look_up(self._context_2, u * self._base + v)
    seen = 2 + np.minimum(np.log2(np.maximum(pair, 1)).astype(np.int64), BUCKETS - 3)
    return np.where(pair > 0, seen, np.where(self._context_1[v] > 0, 1, 0))

  def components(self, events: Sequence[np.ndarray]) -> np.ndarray:
    """p_k(w | u v), float64 [events, ORDERS]; 0 where the context was never seen."""
    u, v, w = events
    pair = u * self._base + v
    return np.stack([
        np.full(len(w), 1 / self.vocab_size),
        self._unigrams[w] / max(self.num_events, 1),
        _look_up(self._bigrams, v * self._base + w) / np.maximum(self._context_1[v], 1),
        _look_up(self._trigrams, pair * self._base + w) / np.maximum(_look_up(self._context_2, pair), 1)], axis=1)

  def probabilities(self, events: Sequence[np.ndarray]) -> np.ndarray:
    """p(w | u v), float64 [events]; above 0 for every token of the vocabulary."""
    return (self.weights[self.bucket(*events[:2])] * self.components(events)).sum(axis=1)

  def fit_weights(self, events: Sequence[np.ndarray]) -> np.ndarray:
    """[BUCKETS, ORDERS] weights that maximise the likelihood of events that were not counted, by EM from equal ones.

    A bucket starts from, and always keeps, some uniform probability: half an event's worth.
    """
    bucket, components = self.bucket(*events[:2]), self.components(events)
    start = weights = _equal_weights()
    for _ in range(EM_STEPS):
      shares = weights[bucket] * components
      shares /= shares.sum(axis=1, keepdims=True)
      counts = 0.5 * start + np.stack([np.bincount(bucket, shares[:, k], BUCKETS) for k in range(ORDERS)], axis=1)
      weights = counts / counts.sum(axis=1, keepdims=True)
    return weights


def _equal_weights() -> np.ndarray:
  """Equal shares of the orders defined in a bucket: no bigram in 0, no trigram in 0 and 1."""
  defined = np.ones((BUCKETS, ORDERS))
  defined[0, 2:] = defined[1, 3:] = 0
  return defined / defined.sum(axis=1, keepdims=True)


def _look_up(table: tuple[np.ndarray, np.ndarray], keys: np.ndarray) -> np.ndarray:
  """Counts of `keys` in (sorted unique keys, counts), 0 where absent."""
  known, counts = table
  if not len(known):
    return np.zeros(len(keys), np.int64)
  at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
  return np.where(known[at] == keys, counts[at], 0)
