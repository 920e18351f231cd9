"""A ramp: batch size and sequence length that change within a stage, as phases of steps of one shape."""
import dataclasses
from collections.abc import Sequence
from typing import Annotated

from llm_jax.config.errors import require
from llm_jax.config.fields import Change, SafeToChange, Sequences, Tokens

__all__ = ['Phase', 'Ramp']


def _is_more_than_rounding(change: Change) -> bool:
  """Whether another number of microbatches is more than another order of summation."""
  return change.run.model.depends_on_microbatches


MICROBATCHES_MAY_CHANGE = SafeToChange(
  _is_more_than_rounding, 'the model has dropout or a router that balances the experts over a microbatch')


@dataclasses.dataclass(frozen=True)
class Ramp:
  """Another batch size and sequence length, from the first step on that begins after `tokens` tokens of the stage
  (Dubey et al. 2024, Llama 3, section 3.4.1).

  tokens: tokens of the stage after which it begins.
  batch_size: sequences of a step over all devices, from then on.
  seq_len: length of a sequence, from then on.
  microbatches: pieces that a step is computed in. None means as few as leave each of them no more tokens than the
    stage's first ones have.
  """
  tokens: Tokens
  batch_size: Sequences
  seq_len: Tokens
  microbatches: Annotated[int | None, MICROBATCHES_MAY_CHANGE] = None

  def __post_init__(self):
    for field in ('tokens', 'batch_size', 'seq_len'):
      require(getattr(self, field) > 0, field, getattr(self, field), 'use 1 or more')
    if self.microbatches is not None:
      require(self.microbatches > 0 and self.batch_size % self.microbatches == 0, 'microbatches', self.microbatches,
              f'use a divisor of batch_size={self.batch_size}')


@dataclasses.dataclass(frozen=True)
class Phase:
  """Steps of one shape, and how many steps, samples and tokens of the stage come before them.

  sequences: in a row, each of `seq_len` tokens.
  """
  first_step: int
  first_sample: int
  first_token: int
  batch_size: int
  seq_len: int
  microbatches: int
  sequences: int = 1

  @property
  def rows(self) -> int:
    """Rows that are computed at once, over all devices."""
    return self.batch_size // self.microbatches

  @property
  def tokens(self) -> int:
    """Tokens of a step, padding included."""
    return self.batch_size * self.sequences * self.seq_len


def make_phases(batch_size: int, seq_len: int, microbatches: int, ramp: Sequence[Ramp], copies: int = 1,
                sequences: int = 1) -> tuple[Phase, ...]:
  """The shapes of a stage's steps, one after the other; the first as given, the others as `ramp` has them.

  copies: devices that share the rows of a microbatch.   sequences: in a row.
  """
  phases = [Phase(0, 0, 0, batch_size, seq_len, microbatches, sequences)]
  most_tokens = batch_size * seq_len // microbatches  # of one sequence of each row, computed at once
  for change in ramp:
    last = phases[-1]
    steps = max(0, -(-(change.tokens - last.first_token) // last.tokens))
    phases.append(Phase(
      first_step=last.first_step + steps,
      first_sample=last.first_sample + steps * last.batch_size,
      first_token=last.first_token + steps * last.tokens,
      batch_size=change.batch_size,
      seq_len=change.seq_len,
      microbatches=change.microbatches or _fewest_microbatches(change, most_tokens, copies),
      sequences=sequences))
  return tuple(phases)


def spans(phases: Sequence[Phase], samples: int) -> list[tuple[Phase, range]]:
  """Each phase, and which of the stage's first `samples` samples it gives."""
  starts = [min(phase.first_sample, samples) for phase in phases]
  stops = [*starts[1:], samples]
  return [(phase, range(start, stop)) for phase, start, stop in zip(phases, starts, stops, strict=True)]


def _fewest_microbatches(change: Ramp, most_tokens: int, copies: int) -> int:
  """Microbatches of at most `most_tokens` tokens whose rows divide over the devices, or else of the fewest such
  rows."""
  rows = [rows for rows in range(change.batch_size, 0, -1) if change.batch_size % rows == 0 and rows % copies == 0]
  if not rows:
    return change.batch_size
  fits = next((each for each in rows if each * change.seq_len <= most_tokens), rows[-1])
  return change.batch_size // fits
