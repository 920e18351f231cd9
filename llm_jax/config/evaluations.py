"""What a stage's model is asked at its end beside its held-out loss; `llm_jax/evaluation/` does it."""
import dataclasses

from llm_jax.config.errors import require

__all__ = ['Needles']


@dataclasses.dataclass(frozen=True)
class Needles:
  """Needle in a haystack (Kamradt 2023): a fact somewhere in held-out text, asked for at its end, of the model that the
  stage starts from and of the one that it makes.

  contexts: lengths of the text, in tokens. depths: at how many evenly spaced places, from the start of the text to its
  end. rows: texts for each of them.
  enough: a share. The stage is asked at every `eval_every` steps too, and done as soon as so many needles are found at
    every depth of every sequence length while the held-out loss in the context before is at most
    `max_short_loss_increase`, a share, above what it was (Dubey et al. 2024, Llama 3, section 3.4.2). None: it takes
    all its steps.
  """
  seq_lens: tuple[int, ...]
  depths: int = 5
  rows: int = 16
  target_recall: float | None = None
  max_short_loss_increase: float = 0.01

  def __post_init__(self):
    require(len(self.seq_lens) > 0 and min(self.seq_lens) >= 32, 'seq_lens', self.seq_lens,
            'give lengths of 32 tokens or more')
    for field in ('depths', 'rows'):
      require(getattr(self, field) >= 1, field, getattr(self, field), 'use 1 or more')
    require(self.target_recall is None or 0 < self.target_recall <= 1, 'target_recall', self.target_recall, 'use a share in (0, 1], or None')
    require(self.max_short_loss_increase >= 0, 'max_short_loss_increase', self.max_short_loss_increase, 'use 0 or more')
