"""How a part of the samples is made and written: answers with their rewards, or with their revisions."""
from collections.abc import Callable, Sequence

import jax
import numpy as np

from llm_jax.config.revisions import Revisions
from llm_jax.config.samples import Samples
from llm_jax.data.prompts import Prompt
from llm_jax.data.tokenizers import chat_templates
from llm_jax.data.tokenizers.base import Tokenizer
from llm_jax.decode.sampling import Sampling
from llm_jax.rollout.ranking import messages_of
from llm_jax.rollout.revising import Conversation, Said, revise, to_record
from llm_jax.rollout.rewards import ModelScorer, Rewards
from llm_jax.rollout.sample_files import SampleFiles
from llm_jax.rollout.sampling import Answer
from llm_jax.runtime import processes

# (number of a part, its prompts, what draws answers, the part's own key): makes and writes the part.
Draw = Callable[[Sequence[Prompt], int, Sampling, jax.Array], list[Answer]]
WritePart = Callable[[int, list[Prompt], Draw, jax.Array], None]


def score_part(samples: Samples, by_model: ModelScorer, files: SampleFiles) -> WritePart:
  """Several answers to each prompt, with their rewards."""
  rewards = Rewards(samples)

  def write(number: int, prompts: list[Prompt], draw: Draw, key: jax.Array) -> None:
    answers = draw(prompts, samples.answers, Sampling(samples.temperature), key)
    scores = rewards.score(answers, by_model)
    processes.on_first(lambda: files.write_part(number, answers, scores, rewards.weighted(scores), samples.answers))

  return write


def revise_part(samples: Revisions, tokenizer: Tokenizer, seed: int, files: SampleFiles) -> WritePart:
  """One answer to each prompt, with its critiques and revisions.   seed: of the draw of principles."""
  sampling = Sampling(samples.temperature)

  def write(number: int, prompts: list[Prompt], draw: Draw, key: jax.Array) -> None:
    def ask(conversations: Sequence[Conversation], call: int) -> list[Said]:
      asked = [prompt_of(conversation) for conversation in conversations]
      rows = [*asked, *[asked[-1]] * (len(prompts) - len(asked))]  # another number of rows would be compiled anew
      answers = draw(rows, 1, sampling, jax.random.fold_in(key, 1 + call))
      return [said(answer) for answer in answers[:len(asked)]]

    def prompt_of(conversation: Conversation) -> Prompt:
      ids = chat_templates.prompt_ids(conversation, samples.template, tokenizer)
      return Prompt(conversation[-1]['content'], tuple(ids.tolist()), {}, conversation)

    answers = [said(answer) for answer in draw(prompts, 1, sampling, jax.random.fold_in(key, 0))]
    shape = (samples.revisions, len(prompts))
    drawn = np.random.default_rng([seed, number]).integers(len(samples.principles), size=shape)
    conversations = [list(messages_of({'prompt': prompt.messages})) for prompt in prompts]
    revisions = revise(samples.principles, conversations, answers, drawn, ask)
    records = [to_record(prompt.messages, prompt.columns, answer, revised)
               for prompt, answer, revised in zip(prompts, answers, revisions, strict=True)]
    processes.on_first(lambda: files.write_records(number, records))

  return write


def said(answer: Answer) -> Said:
  return Said(answer.text, answer.ended)
