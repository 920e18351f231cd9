"""Batches of a stage that learns from its own answers: a rollout is sampled, scored, and given out in steps.

What is made of the answers is in `rewarded_source.py`, `pair_source.py` and `text_source.py`.
"""
import abc
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import jax
import numpy as np

from llm_jax.batch import LanguageModelBatch
from llm_jax.config.errors import require
from llm_jax.config.stage import Stage
from llm_jax.data.batch_source import BatchSource, DataPosition
from llm_jax.data.batches import check_same_data
from llm_jax.data.prompts import Prompt, PromptSet
from llm_jax.decode.sampling import Sampling
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.frozen import Frozen
from llm_jax.rollout.buffer import RolloutBuffer
from llm_jax.rollout.log_probs import score_answers
from llm_jax.rollout.model_rewards import make_model_scorer
from llm_jax.rollout.numbers import answer_numbers, collapse, reward_numbers
from llm_jax.rollout.rewards import Rewards
from llm_jax.rollout.sampling import Answer, Sampler
from llm_jax.rollout.turns import TurnSampler
from llm_jax.runtime.errors import CheckpointError
from llm_jax.sharding.rules import placed

MOST_SHOWN = 8  # answers of a rollout that are written down


@dataclasses.dataclass(frozen=True)
class Policy:
  """The models of a rollout, as functions of what is trained and of what stands frozen beside it.

  model: what computes log-probabilities of all parameters, as it is trained.
  whole: (params, frozen) -> all parameters.
  for_decoding: the same as arrays in the dtype of the computation, laid out for the decoder.
  reference: (frozen) -> all parameters of what the stage starts from, or None.
  values: (all parameters, rows) -> what a critic foresees before each target; None without one.
  """
  model: Transformer
  whole: Callable[[Any, Frozen], Any]
  for_decoding: Callable[[Any, Frozen], Any]
  reference: Callable[[Frozen], Any]
  values: Callable[[Any, Any], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Shown:
  """What a person is told of a rollout.

  answers: (prompt, answer with its reward), a few of them.   warnings: as `numbers.collapse` has them.
  """
  answers: tuple[tuple[str, str], ...] = ()
  warnings: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Sampled:
  """The answers of a rollout, those to one prompt side by side, and their rewards.

  scores: of each reward by itself, not weighted, float64 [rewards, answers].   rewards: float64 [answers].
  """
  answers: list[Answer]
  scores: np.ndarray
  rewards: np.ndarray


@dataclasses.dataclass(frozen=True)
class StepRows:
  """What a step learns from.

  batch: NumPy arrays.   num_tokens: of prompts and answers in it.   num_places: the same with padding.
  """
  batch: Any
  num_tokens: int
  num_places: int


class RolloutSource(BatchSource, abc.ABC):
  """Answers sampled with the parameters of the state at the first step of each rollout.

  Everything about a rollout follows from the parameters, the seed and its number. Its position is the number of units
  (answers, or pairs of them) that were given out, and where that is in the middle of a rollout, the rollout itself is
  saved beside it.

  sharding: of [batch, time] arrays.   shards: how many devices share the rows of a batch.
  """
  answers_in_unit: ClassVar[int] = 1  # of what a step learns from

  def __init__(self, stage: Stage, prompts: PromptSet, policy: Policy, sampler: Sampler | TurnSampler,
               rewards: Rewards, sharding: jax.sharding.NamedSharding, seed: int, shards: int = 1):
    assert stage.rollout is not None
    self.rollout = stage.rollout
    self.lengths = stage.rollout.lengths(stage.seq_len)
    self.row_counts = stage.rollout.row_counts(stage.batch_size, shards * stage.microbatches)
    self._stage = stage
    self._prompts = prompts
    self._policy = policy
    self._sampler = sampler
    self._rewards = rewards
    self._sharding = sharding
    self._seed = seed
    self._samples = 0
    self._number = 0
    self._tokens = 0
    self._buffer: RolloutBuffer | None = None
    self._numbers: dict[str, Any] = {}
    self._shown = Shown()

  # -------------------------------------------------------------------------------------------- what differs
  @abc.abstractmethod
  def learnt(self, sampled: Sampled, order: np.ndarray, params: Any, frozen: Any
             ) -> tuple[RolloutBuffer, dict[str, float]]:
    """What the steps of a rollout learn from, and numbers for people.   order: int32 [replays, units]."""

  @abc.abstractmethod
  def rows(self, buffer: RolloutBuffer, units: np.ndarray) -> StepRows:
    """The rows of these units.   units: int32 [batch_size]."""

  @abc.abstractmethod
  def shapes(self) -> Iterator[tuple[tuple[int, int], Any]]:
    """((rows, their length), the shapes, dtypes and sharding of the batch) of each that a step may have."""

  @property
  def num_units(self) -> int:
    """That a rollout has."""
    return self._stage.batch_size * self.rollout.minibatches

  @property
  def num_prompts(self) -> int:
    """That a rollout answers."""
    return self.num_units // self.rollout.answers

  # -------------------------------------------------------------------------------------------- batches
  def next(self, state: Any = None, frozen: Any = None) -> Any:
    """The batch of the next step; at the first of a rollout its answers are made."""
    number, place = divmod(self._samples // self._stage.batch_size, self.rollout.steps)
    self._numbers, self._shown = {}, Shown()
    if place == 0:
      self._buffer = self.make(number, state.params, frozen)
    assert self._buffer is not None
    replay, minibatch = divmod(place, self.rollout.minibatches)
    first = minibatch * self._stage.batch_size
    rows = self.rows(self._buffer, self._buffer.order[replay, first:first + self._stage.batch_size])
    batch = self._place(rows.batch)
    self._samples += self._stage.batch_size
    self._tokens += rows.num_tokens
    self._numbers |= {'tokens': self._tokens, 'step_tokens': rows.num_tokens,
                      'padding': 1 - rows.num_tokens / rows.num_places}
    return batch

  def make(self, number: int, params: Any, frozen: Any) -> RolloutBuffer:
    """A rollout: sampled, scored, with what its steps compare with.

    Raises:
      RewardError: a reward that is no number.
    """
    jax.block_until_ready(params)  # so that the step before is not counted as sampling
    seconds = Seconds()
    self._number = number
    key, order = self._chance(number)
    first = number * self.num_prompts
    prompts = [self._prompts.at(number) for number in range(first, first + self.num_prompts)]
    answers = self.answers(prompts, key, params, frozen)
    seconds.note('sampling')
    by_model = make_model_scorer(self.rollout, frozen, self._prompts, self.rollout.answers, self._rows_at_once,
                                 self.lengths, self._place)
    scores = self._rewards.score(answers, by_model)
    sampled = Sampled(answers, scores, self._rewards.weighted(scores))
    seconds.note('scoring')
    buffer, numbers = self.learnt(sampled, order, params, frozen)
    seconds.note('log_probs')
    self._numbers = {**answer_numbers(answers, self.rollout.answers), **self._reward_numbers(sampled), **numbers,
                     **seconds.noted}
    self._shown = Shown(self._examples(sampled), collapse(self._numbers, self.rollout.answers))
    return buffer

  def answers(self, prompts: list[Prompt], key: jax.Array, params: Any, frozen: Any) -> list[Answer]:
    """Those to one prompt side by side. The decoder's copy of the parameters is gone before log-probabilities need the
    memory."""
    decoding = self._policy.for_decoding(params, frozen)
    return self._sampler.answers(decoding, prompts, self.rollout.answers, Sampling(self.rollout.temperature), key)

  @property
  def _is_shown(self) -> bool:
    """Whether answers of the newest rollout are written down."""
    every = self.rollout.samples_every
    return every > 0 and self._number % every == 0

  def _reward_numbers(self, sampled: Sampled) -> dict[str, float]:
    if not self._rewards.names:
      return {}
    parts = dict(zip(self._rewards.names, sampled.scores, strict=True))
    return reward_numbers(sampled.rewards, parts, self.rollout.answers)

  @property
  def _rows_at_once(self) -> int:
    """Of one microbatch, with one answer in a row."""
    return self._stage.batch_size // self._stage.microbatches

  @property
  def _sizes(self) -> list[int]:
    """Rows that a microbatch may have, with several answers in a row."""
    return [count // self._stage.microbatches for count in self.row_counts]

  def _chance(self, number: int) -> tuple[jax.Array, np.ndarray]:
    """The key of a rollout's sampling, and the order in which its units are learnt from, [replays, units]."""
    key = jax.random.fold_in(jax.random.key(self._seed), number)
    orders = [jax.random.permutation(jax.random.fold_in(key, replay), self.num_units)
              for replay in range(self.rollout.replays)]
    return key, np.stack([np.asarray(order) for order in orders])

  def _log_probs(self, params: Any, buffer: RolloutBuffer, with_entropy: bool = False
                 ) -> tuple[np.ndarray, np.ndarray]:
    return score_answers(self._policy.model, params, buffer, self.rollout.temperature, self._sizes, self._place,
                         with_entropy)

  def _place(self, batch: Any) -> Any:
    """Arrays that every process has whole, on the devices of the mesh."""
    return placed(batch, self._sharding)

  def _abstract_text(self, count: int, length: int) -> LanguageModelBatch:
    """The shapes, dtypes and sharding of so many rows."""
    whole, real = (self._abstract(count, length, dtype) for dtype in (np.int32, np.float32))
    return LanguageModelBatch(whole, whole, real, whole, whole)

  def _abstract(self, count: int, length: int, dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((count, length), dtype, sharding=self._sharding)

  # -------------------------------------------------------------------------------------------- for people
  def numbers(self) -> dict[str, Any]:
    """Of the last batch, np.float64 scalars, and of the rollout where it began one.

    tokens, step_tokens: prompts and answers that were learnt from, in all and in this step.
    padding: the share of what the step computes that is none of these.
    """
    return {name: np.float64(value) for name, value in self._numbers.items()}

  def shown(self) -> Shown:
    """Of the same."""
    return self._shown

  def _examples(self, sampled: Sampled) -> tuple[tuple[str, str], ...]:
    if not self._is_shown:
      return ()
    step = max(self.rollout.answers, len(sampled.answers) // MOST_SHOWN)
    found: list[tuple[str, str]] = []
    for i in range(0, len(sampled.answers), step)[:MOST_SHOWN]:
      reward = f'\n[reward {sampled.rewards[i]:.3g}]' if self._rewards.names else ''
      found.append((sampled.answers[i].prompt.text, f'{sampled.answers[i].text}{reward}'))
    return tuple(found)

  # -------------------------------------------------------------------------------------------- where it is
  @property
  def fingerprint(self) -> dict[str, str]:
    rollout = self.rollout
    return {**self._prompts.fingerprint, 'batch_size': str(self._stage.batch_size),
            'rollout': f'answers={rollout.answers} minibatches={rollout.minibatches} replays={rollout.replays}'}

  def position(self) -> DataPosition:
    return DataPosition(self._samples, self.fingerprint, self._tokens)

  def arrays(self) -> dict[str, Any]:
    """The rollout, where some of its steps are still to come: the parameters that sampled it are gone."""
    if self._buffer is None or self._place_in_rollout == 0:
      return {}
    everywhere = jax.sharding.NamedSharding(self._sharding.mesh, jax.sharding.PartitionSpec())
    return {
      name: jax.make_array_from_callback(array.shape, everywhere, lambda index, array=array: array[index])
      for name, array in self._buffer.arrays().items()
    }

  def restore(self, position: DataPosition, arrays: Mapping[str, Any] | None = None) -> None:
    check_same_data(position.fingerprint, self.fingerprint)
    self._samples, self._tokens = position.samples, position.tokens
    if self._place_in_rollout == 0:
      return
    if not arrays:
      raise CheckpointError(f'the checkpoint of stage {self._stage.name} is in the middle of a rollout and lacks it: '
                            'go back to an earlier one with --from_step')
    self._buffer = RolloutBuffer.from_arrays(arrays)
    count = self.num_units * self.answers_in_unit
    require(self._buffer.ids.shape == (count, self._stage.seq_len + 1), 'seq_len', self._stage.seq_len,
            'the checkpoint has a rollout of another size')

  @property
  def _place_in_rollout(self) -> int:
    """Steps of the rollout that were given out; 0: the next one begins another."""
    return self._samples // self._stage.batch_size % self.rollout.steps

  def close(self) -> None:
    """Nothing is read ahead."""


class Seconds:
  """How long the parts of a rollout took."""

  def __init__(self):
    self.noted: dict[str, float] = {}
    self._since = time.perf_counter()

  def note(self, part: str) -> None:
    """The part has ended."""
    now = time.perf_counter()
    self.noted[f'{part}_seconds'] = now - self._since
    self._since = now
