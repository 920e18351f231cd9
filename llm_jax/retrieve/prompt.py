"""How passages stand before a question, the same in training as when the model is asked."""
from collections.abc import Sequence

BETWEEN = '\n\n'  # passages, and the last one and the question


def behind_passages(passages: Sequence[str], question: str) -> str:
  """A prompt: the passages, the best one last, beside the question."""
  return BETWEEN.join([*reversed(passages), question])
