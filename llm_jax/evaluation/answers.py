"""Whether a model answers in form: it ends its turn, and where code was asked for, writes code that parses."""
from collections.abc import Sequence
from typing import Any

from llm_jax.config.model.architecture import Architecture
from llm_jax.data.dataset import Dataset
from llm_jax.data.sources import standard_library
from llm_jax.data.tokenizers.base import Tokenizer
from llm_jax.decode.generate import generate
from llm_jax.modules.execution import Execution

QUESTIONS = 64  # of held-out are answered


def check_answers(config: Architecture, params: Any, tokenizer: Tokenizer, held_out: Dataset,
                  execution: Execution | None = None) -> dict[str, float]:
  """Answers up to 64 conversations of a held-out dataset greedily, their prompts at most half of its context.

  Returns: `ended` and `parses` as `in_form` has them; {} where no prompt is that short. Of sharded parameters every
  process calls it and gets the same.
  """
  room = held_out.seq_len if config.max_length is None else min(held_out.seq_len, config.max_length)
  questions = held_out.questions(QUESTIONS, room // 2)
  if not questions:
    return {}
  prompts, given = zip(*questions, strict=True)
  stops = sorted({answer[-1] for answer in given})
  generated = generate(config, params, prompts, room - max(map(len, prompts)), stop_tokens=stops, execution=execution)
  return in_form(generated.tokens, given, stops, tokenizer)


def in_form(answers: Sequence[Sequence[int]], given: Sequence[Sequence[int]], stops: Sequence[int],
            tokenizer: Tokenizer) -> dict[str, float]:
  """Shares of the answers, each beside the answer that was given to the same question, as ids.

  ended: whose last id is one of `stops`.
  parses: of those whose given answer is one fenced block of Python, that ended and are one too, and parse; left out
    where there are none.
  """
  ended = [bool(len(answer)) and answer[-1] in stops for answer in answers]
  right = [end and _is_python(answer, tokenizer) for answer, end, example in zip(answers, ended, given, strict=True)
           if _is_python(example, tokenizer)]
  scores = {'ended': sum(ended) / len(ended)}
  return {**scores, 'parses': sum(right) / len(right)} if right else scores


def _is_python(answer: Sequence[int], tokenizer: Tokenizer) -> bool:
  """Of an answer whose last id ends the turn."""
  code = standard_library.code_in(tokenizer.decode(answer[:-1]))
  return code is not None and standard_library.parses(code)
