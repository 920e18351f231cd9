"""Whether a model answers in form: it ends its turn, and where code was asked for, writes code that parses."""
from collections.abc import Sequence
from typing import Any

from llm_jax.config.evaluations import Answers
from llm_jax.config.model.architecture import Architecture
from llm_jax.config.rows import TEXT
from llm_jax.data.dataset import Dataset
from llm_jax.data.sources import standard_library
from llm_jax.data.tokenizers.base import Tokenizer
from llm_jax.decode.generate import generate
from llm_jax.evaluation.protocol import Evaluated, Evaluation, Metrics, Moment, Result
from llm_jax.modules.execution import Execution

# What each share means, in a line of the terminal, and in the few words of a headline.
LINES = {'ended': 'answers to held-out prompts that end', 'parses': 'and are in form'}
HEADLINES = {'parses': 'in form', 'ended': 'answers end'}


class AnswersEvaluation(Evaluation):
  """Greedy answers to held-out conversations, at the stage's start and at its end."""
  at_start = True
  config: Answers

  def applies(self) -> bool:
    stage = self.setup.stage
    has_dialogues = stage.validation_data.template is not None and stage.validation_data.rows == TEXT
    return self.setup.has_validation and has_dialogues

  def run(self, model: Evaluated, start: Metrics) -> Result:
    setup = self.setup
    metrics = check_answers(setup.model, model.params, setup.tokenizer, setup.validation, setup.execution,
                            self.config.questions)
    if model.moment is not Moment.END:
      return Result(metrics)
    if not metrics:
      return Result(lines=('no held-out question fits into half of the sequence length: no answers are scored',))
    lines = tuple(f'{LINES[name]}: {beside(metrics, start, name)}' for name in LINES if name in metrics)
    first = next(name for name in HEADLINES if name in metrics)
    change = beside(metrics, start, first).replace('->', '→')
    return Result(metrics, lines, headline=f'{change} {HEADLINES[first]}')


def beside(now: Metrics, start: Metrics, name: str) -> str:
  """A share at the end, and at the start where that is known: `12% -> 75%`."""
  return (f'{start[name]:.0%} -> ' if name in start else '') + f'{now[name]:.0%}'


def check_answers(config: Architecture, params: Any, tokenizer: Tokenizer, validation: Dataset,
                  execution: Execution | None = None, questions: int = 64) -> dict[str, float]:
  """Answers up to `questions` conversations of a validation split greedily, their prompts at most half of its seq_len.

  Returns: `ended` and `parses` as `in_form` has them; {} where no prompt is that short. Of sharded parameters every
  process calls it and gets the same.
  """
  room = validation.seq_len if config.max_length is None else min(validation.seq_len, config.max_length)
  chosen = validation.questions(questions, room // 2)
  if not chosen:
    return {}
  prompts, given = zip(*chosen, strict=True)
  stops = sorted({answer[-1] for answer in given})
  longest = max(len(prompt) for prompt in prompts)
  generated = generate(config, params, prompts, room - longest, stop_tokens=stops, execution=execution)
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
