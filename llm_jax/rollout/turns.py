"""Answers in several turns: the model calls a function, reads what it returns, and goes on."""
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from llm_jax.config.rollout import Rollout
from llm_jax.config.samples import Samples
from llm_jax.data.prompts import Prompt, PromptSet
from llm_jax.decode.sampling import Greedy, Sampling
from llm_jax.rollout.sampling import Answer, Sampler
from llm_jax.rollout.tools import Call, Tools, calls_in, check_functions
from llm_jax.runtime import processes

CHANCE = 0x7475726e  # sets the draws of later turns apart


@dataclasses.dataclass(frozen=True)
class TurnSampler:
  """Samples as `Sampler` does, and goes on where an answer ends with a call, at most `turns` times in all.

  The ids of an answer are those of all turns and of what stands between them, at most `sampler.max_new_tokens`; what
  the functions return is cut to `tool_tokens` and marked as not the model's own. The answer's text is that of the last
  turn. What is drawn depends on the key, the turn, the answer's place among those that go on, and the position.

  reply: (what the functions return) -> the ids behind the end of an answer, up to where the model speaks again.
  """
  sampler: Sampler
  tools: Tools
  turns: int
  tool_tokens: int
  reply: Callable[[str], tuple[int, ...]]

  def answers(self, params: Any, prompts: Sequence[Prompt], samples: int, sampling: Greedy | Sampling, key: jax.Array
              ) -> list[Answer]:
    """`samples` answers to each prompt, side by side."""
    found = self.sampler.answers(params, prompts, samples, sampling, key)
    for turn in range(1, self.turns):
      going_on = [i for i, answer in enumerate(found) if answer.ended and calls_in(answer.text)]
      if not going_on:
        break
      replies = self.replies([found[i] for i in going_on])
      continued = {i: reply for i, reply in zip(going_on, replies, strict=True) if self.room(found[i], reply) > 0}
      if not continued:
        break
      open_prompts = [found[i].continued(reply) for i, reply in continued.items()]
      more = self.sampler.answers(params, filled(open_prompts), 1, sampling, jax.random.fold_in(key, CHANCE + turn))
      for (i, reply), answer in zip(continued.items(), more[:len(open_prompts)], strict=True):
        found[i] = joined(found[i], reply, self.cut(answer, self.room(found[i], reply)))
    return found

  def replies(self, answers: Sequence[Answer]) -> list[tuple[int, ...]]:
    """What stands behind each answer that calls, up to where the model speaks again. Process 0 calls the functions."""
    calls = [calls_in(answer.text) for answer in answers]
    texts = processes.on_first(lambda: [self.result(each) for each in calls])
    return [self.reply(text) for text in texts]

  def result(self, calls: Sequence[Call]) -> str:
    """What the calls return, cut to `tool_tokens`."""
    tokenizer = self.sampler.tokenizer
    ids = tokenizer.encode(self.tools.results(calls))
    return tokenizer.decode(ids[:self.tool_tokens])

  def cut(self, answer: Answer, room: int) -> Answer:
    """A turn that has no more tokens than there is room for."""
    if len(answer.ids) <= room:
      return answer
    ids = answer.ids[:room]
    return Answer(answer.prompt, ids, self.sampler.tokenizer.decode(ids), False, answer.log_probs[:room])

  def room(self, answer: Answer, reply: tuple[int, ...]) -> int:
    """Tokens that are left for the next turn."""
    return self.sampler.max_new_tokens - len(answer.ids) - len(reply)


def make_sampler(sampler: Sampler, answering: Rollout | Samples, prompts: PromptSet) -> Sampler | TurnSampler:
  """The sampler itself, or where functions may be called one that goes on behind the calls."""
  if isinstance(answering, Samples) or not answering.tools:
    return sampler
  check_functions(answering.tools)
  tools = Tools(answering.tools, answering.tool_seconds)
  return TurnSampler(sampler, tools, answering.turns, answering.tool_tokens, prompts.reply_ids)


def joined(answer: Answer, reply: tuple[int, ...], more: Answer) -> Answer:
  """An answer with its next turn."""
  return dataclasses.replace(
    answer,
    ids=(*answer.ids, *reply, *more.ids),
    text=more.text,
    ended=more.ended,
    log_probs=(*answer.log_probs, *(0.0,) * len(reply), *more.log_probs),
    replies=(*answer.replies, (len(answer.ids), len(answer.ids) + len(reply))))


def filled(prompts: list[Prompt]) -> list[Prompt]:
  """As many as a power of 2, so that few numbers of rows are compiled: the last one again and again."""
  wanted = 1 << (len(prompts) - 1).bit_length()
  return prompts + prompts[-1:] * (wanted - len(prompts))
