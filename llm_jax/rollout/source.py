"""Batches of a stage that learns from its own answers: a rollout is sampled, scored, and given out in steps."""
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from llm_jax.batch import LanguageModelBatch, RolloutBatch
from llm_jax.config.errors import require
from llm_jax.config.policy_gradients import PPO, PolicyGradient
from llm_jax.config.stage import Stage
from llm_jax.data.batch_source import BatchSource, DataPosition
from llm_jax.data.batches import check_same_data
from llm_jax.data.prompts import PromptSet
from llm_jax.decode.sampling import Sampling
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.frozen import Frozen
from llm_jax.rollout.buffer import RolloutBuffer, token_weights
from llm_jax.rollout.credit import Credit, credit_of_critic, credit_of_groups
from llm_jax.rollout.log_probs import score_answers, value_answers
from llm_jax.rollout.numbers import collapse, mismatch_numbers, rollout_numbers
from llm_jax.rollout.packing import in_parts
from llm_jax.rollout.reward_models import RewardModels
from llm_jax.rollout.rewards import Rewards
from llm_jax.rollout.sampling import Answer, Sampler
from llm_jax.runtime.errors import CheckpointError

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


class RolloutSource(BatchSource):
  """Answers sampled with the parameters of the state at the first step of each rollout.

  Everything about a rollout follows from the parameters, the seed and its number. Its position is the number of answers
  that were given out, and where that is in the middle of a rollout, the rollout itself is saved beside it.

  sharding: of [batch, time] arrays.   shards: how many devices share the rows of a batch.
  """

  def __init__(self, stage: Stage, prompts: PromptSet, policy: Policy, sampler: Sampler, rewards: Rewards,
               sharding: jax.sharding.NamedSharding, seed: int, shards: int = 1):
    assert stage.rollout is not None and isinstance(stage.objective, PolicyGradient | PPO)
    self.rollout = stage.rollout
    self.lengths = stage.rollout.lengths(stage.seq_len)
    self.row_counts = stage.rollout.row_counts(stage.batch_size, shards * stage.microbatches)
    self._stage = stage
    self._objective = stage.objective
    self._prompts = prompts
    self._policy = policy
    self._sampler = sampler
    self._rewards = rewards
    self._sharding = sharding
    self._seed = seed
    self._samples = 0
    self._tokens = 0
    self._buffer: RolloutBuffer | None = None
    self._numbers: dict[str, Any] = {}
    self._shown = Shown()

  # -------------------------------------------------------------------------------------------- batches
  def next(self, state: Any = None, frozen: Any = None) -> RolloutBatch:
    """The answers of the next step; at the first of a rollout they are made."""
    number, place = divmod(self._samples // self._stage.batch_size, self.rollout.steps)
    self._numbers, self._shown = {}, Shown()
    if place == 0:
      self._buffer = self.make(number, state.params, frozen)
    assert self._buffer is not None
    replay, minibatch = divmod(place, self.rollout.minibatches)
    first = minibatch * self._stage.batch_size
    rows = self._buffer.order[replay, first:first + self._stage.batch_size]
    [layout] = in_parts(self._buffer.pack(rows), self.row_counts)
    aggregation = self._objective.aggregation if isinstance(self._objective, PolicyGradient) else 'tokens'
    is_answer = self._buffer.is_answer(np.arange(len(self._buffer.ids)))
    weights = token_weights(is_answer, aggregation, self.rollout.max_new_tokens)
    batch = self._place(self._buffer.batch(layout, weights))
    self._samples += self._stage.batch_size
    self._tokens += layout.num_tokens
    self._numbers |= {'tokens': self._tokens, 'step_tokens': layout.num_tokens,
                      'padding': 1 - layout.num_tokens / layout.answers.size}
    return batch

  def make(self, number: int, params: Any, frozen: Any) -> RolloutBuffer:
    """A rollout: sampled, scored, with the log-probabilities that its steps compare with.

    Raises:
      RewardError: a reward that is no number.
    """
    jax.block_until_ready(params)  # so that the step before is not counted as sampling
    seconds = Seconds()
    group, count = self.rollout.answers, self._stage.batch_size * self.rollout.minibatches
    first = number * (count // group)
    prompts = [self._prompts.at(number) for number in range(first, first + count // group)]
    key, order = self._chance(number, count)
    decoding = self._policy.for_decoding(params, frozen)
    answers = self._sampler.answers(decoding, prompts, group, Sampling(self.rollout.temperature), key)
    del decoding  # before the log-probabilities need the memory
    seconds.note('sampling')
    by_model = RewardModels(frozen, self._prompts.end, self._rows_at_once, self.lengths, self._place)
    scores = self._rewards.score(answers, by_model)
    rewards = self._rewards.weighted(scores)
    seconds.note('scoring')
    buffer = RolloutBuffer.of(answers, self._stage.seq_len, order)
    whole = self._policy.whole(params, frozen)
    old, entropies = self._log_probs(whole, buffer, with_entropy=True)
    reference = None
    if self._objective.has_reference:
      reference, _ = self._log_probs(self._policy.reference(frozen), buffer)
    is_answer = buffer.is_answer(np.arange(count))
    credit = self._credit(whole, buffer, rewards, old, reference, is_answer)
    seconds.note('log_probs')
    parts = dict(zip(self._rewards.names, scores, strict=True))
    self._numbers = {
      **rollout_numbers(answers, rewards, parts, group),
      **mismatch_numbers(answers, old, is_answer),
      'entropy': float(entropies[is_answer].mean()),
      **credit.numbers,
      **seconds.noted,
    }
    self._shown = Shown(self._examples(number, answers, rewards), collapse(self._numbers, group))
    return dataclasses.replace(buffer, advantages=credit.advantages, old_log_probs=old, reference_log_probs=reference,
                               values=credit.values, returns=credit.returns)

  def _credit(self, whole: Any, buffer: RolloutBuffer, rewards: np.ndarray, old: np.ndarray,
              reference: np.ndarray | None, is_answer: np.ndarray) -> Credit:
    """What the tokens of the answers are credited with.   whole: all parameters.   rewards: [answers]."""
    match self._objective:
      case PolicyGradient() as config:
        return credit_of_groups(config, rewards, old, reference, is_answer, self.rollout.answers)
      case PPO() as config:
        assert self._policy.values is not None
        values = value_answers(self._policy.values, whole, buffer, self._sizes, self._place)
        return credit_of_critic(config, rewards, old, reference, values, is_answer)

  @property
  def _rows_at_once(self) -> int:
    """Of one microbatch, with one answer in a row."""
    return self._stage.batch_size // self._stage.microbatches

  @property
  def _sizes(self) -> list[int]:
    """Rows that a microbatch may have, with several answers in a row."""
    return [count // self._stage.microbatches for count in self.row_counts]

  def _chance(self, number: int, count: int) -> tuple[jax.Array, np.ndarray]:
    """The key of a rollout's sampling, and the order in which its answers are learnt from, [replays, answers]."""
    key = jax.random.fold_in(jax.random.key(self._seed), number)
    orders = [jax.random.permutation(jax.random.fold_in(key, replay), count) for replay in range(self.rollout.replays)]
    return key, np.stack([np.asarray(order) for order in orders])

  def _log_probs(self, params: Any, buffer: RolloutBuffer, with_entropy: bool = False
                 ) -> tuple[np.ndarray, np.ndarray]:
    return score_answers(self._policy.model, params, buffer, self.rollout.temperature, self._sizes, self._place,
                         with_entropy)

  def _place(self, batch: Any) -> Any:
    """Arrays that every process has whole, on the devices of the mesh."""
    return placed(batch, self._sharding)

  def abstract(self, count: int) -> RolloutBatch:
    """The shapes, dtypes and sharding of a step's batch of `count` rows."""
    shape = (count, self._stage.seq_len)
    whole, real = (jax.ShapeDtypeStruct(shape, dtype, sharding=self._sharding) for dtype in (np.int32, np.float32))
    reference = real if self._objective.has_reference else None
    value = real if self._policy.values else None
    return RolloutBatch(LanguageModelBatch(whole, whole, real, whole, whole), real, real, reference, value, value)

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

  def _examples(self, number: int, answers: list[Answer], rewards: np.ndarray) -> tuple[tuple[str, str], ...]:
    every = self.rollout.samples_every
    if every == 0 or number % every:
      return ()
    step = max(self.rollout.answers, len(answers) // MOST_SHOWN)
    chosen = range(0, len(answers), step)[:MOST_SHOWN]
    return tuple((answers[i].prompt.text, f'{answers[i].text}\n[reward {rewards[i]:.3g}]') for i in chosen)

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
    count = self._stage.batch_size * self.rollout.minibatches
    require(self._buffer.ids.shape == (count, self._stage.seq_len + 1), 'seq_len', self._stage.seq_len,
            'the checkpoint has a rollout of another size')

  @property
  def _place_in_rollout(self) -> int:
    """Steps of the rollout that were given out; 0: the next one begins another."""
    return self._samples // self._stage.batch_size % self.rollout.steps

  def close(self) -> None:
    """Nothing is read ahead."""


def placed(batch: Any, sharding: jax.sharding.Sharding) -> Any:
  """Arrays that every process has whole, on the devices of the sharding."""
  def put(array: np.ndarray) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
  return jax.tree.map(put, batch)


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
