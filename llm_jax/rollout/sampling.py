"""Answers to prompts, sampled from the model as it is."""
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from llm_jax.config.model.architecture import Architecture
from llm_jax.data.prompts import Prompt
from llm_jax.data.tokenizers.base import Tokenizer
from llm_jax.decode.generate import generate
from llm_jax.decode.sampling import Greedy, Sampling
from llm_jax.modules.execution import Execution
from llm_jax.runtime import activity


@dataclasses.dataclass(frozen=True)
class Answer:
  """What the model says to a prompt.

  ids: with the one that ended it.
  text: without that one.
  ended: whether it ended by itself; else it was cut off.
  log_probs: of the ids, by the sampler, under the temperature that they were sampled with.
  replies: (first, end) of ids that are not the model's own, such as what functions returned that it called; their
    log_probs are 0, and `text` is what it says behind the last of them.
  """
  prompt: Prompt
  ids: tuple[int, ...]
  text: str
  ended: bool
  log_probs: tuple[float, ...]
  replies: tuple[tuple[int, int], ...] = ()

  @property
  def is_own(self) -> np.ndarray:
    """Which of the ids the model has said itself, bool [ids]."""
    own = np.ones(len(self.ids), bool)
    for first, end in self.replies:
      own[first:end] = False
    return own

  @property
  def own_log_probs(self) -> np.ndarray:
    """Of the ids that it has said itself."""
    return np.asarray(self.log_probs)[self.is_own]

  def continued(self, reply: tuple[int, ...]) -> Prompt:
    """The prompt, the answer and a reply to it, as a prompt."""
    return dataclasses.replace(self.prompt, ids=(*self.prompt.ids, *self.ids, *reply))


@dataclasses.dataclass(frozen=True)
class Sampler:
  """Samples answers with the cached decoder, on the mesh of the parameters.

  rows_at_once: how many at a time, all those to one prompt together; None: all.
  """
  model: Architecture
  execution: Execution
  tokenizer: Tokenizer
  stop_tokens: tuple[int, ...]
  max_new_tokens: int
  rows_at_once: int | None = None

  def answers(self, params: Any, prompts: Sequence[Prompt], samples: int, sampling: Greedy | Sampling, key: jax.Array
              ) -> list[Answer]:
    """`samples` answers to each prompt, side by side. What is drawn depends on the key, the answer's place and the
    position alone: not on how many are sampled at once, nor on the number of processes."""
    found: list[Answer] = []
    temperature = sampling.temperature if isinstance(sampling, Sampling) else 1.0
    step = len(prompts) if self.rows_at_once is None else max(1, self.rows_at_once // samples)
    for first in range(0, len(prompts), step):
      activity.beat()
      part = prompts[first:first + step]
      generated = generate(
        self.model, params, [prompt.ids for prompt in part], self.max_new_tokens, sampling, key,
        stop_tokens=self.stop_tokens, execution=self.execution, log_probs=True, samples=samples,
        log_prob_temperature=temperature, first_row=first * samples)
      assert generated.log_probs is not None
      asked = [prompt for prompt in part for _ in range(samples)]
      for prompt, ids, log_probs in zip(asked, generated.tokens, generated.log_probs, strict=True):
        found.append(self.answer(prompt, ids, log_probs))
    return found

  def answer(self, prompt: Prompt, ids: list[int], log_probs: list[float]) -> Answer:
    ended = ids[-1] in self.stop_tokens
    text = self.tokenizer.decode(ids[:-1] if ended else ids)
    return Answer(prompt, tuple(ids), text, ended, tuple(log_probs))
