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
    every depth of every context while the held-out loss in the context before is at most `worse`, a share, above what
    it was (Dubey et al. 2024, Llama 3, section 3.4.2). None: it takes all its steps.
  """
  contexts: tuple[int, ...]
  depths: int = 5
  rows: int = 16
  enough: float | None = None
  worse: float = 0.01

  def __post_init__(self):
    require(len(self.contexts) > 0 and min(self.contexts) >= 32, 'contexts', self.contexts,
            'give lengths of 32 tokens or more')
    for field in ('depths', 'rows'):
      require(getattr(self, field) >= 1, field, getattr(self, field), 'use 1 or more')
    require(self.enough is None or 0 < self.enough <= 1, 'enough', self.enough, 'use a share in (0, 1], or None')
    require(self.worse >= 0, 'worse', self.worse, 'use 0 or more')
