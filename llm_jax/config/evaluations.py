"""What a stage's model is asked at its end beside its held-out loss; `llm_jax/evaluation/` does it."""
import dataclasses

from llm_jax.config.errors import require


@dataclasses.dataclass(frozen=True)
class NeedleTest:
  """Needle in a haystack (Kamradt 2023): a fact somewhere in held-out text, asked for at its end, of the model that the
  stage starts from and of the one that it makes.

  contexts: lengths of the text, in tokens. depths: at how many evenly spaced places, from the start of the text to its
  end. rows: texts for each of them.
  """
  contexts: tuple[int, ...]
  depths: int = 5
  rows: int = 16

  def __post_init__(self):
    require(len(self.contexts) > 0 and min(self.contexts) >= 64, 'contexts', self.contexts,
            'give lengths of 64 tokens or more')
    for field in ('depths', 'rows'):
      require(getattr(self, field) >= 1, field, getattr(self, field), 'use 1 or more')
