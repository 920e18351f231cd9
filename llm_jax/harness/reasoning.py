"""Questions whose answers a program checks, made by the package `reasoning-gym` (Stojanovski et al. 2025)."""
import difflib
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llm_jax.config.errors import ConfigError, require
from llm_jax.config.packages import is_installed
from llm_jax.harness.standard_library import Made

PREFIX = 'reasoning_gym.'  # of the names of its tasks
QUESTIONS, EXAMPLES = 500, 64
QUESTION_SEED, EXAMPLE_SEED = 0, 1
NEW_TOKENS = 256
TAGGED = re.compile(r'<answer>(.*?)</answer>', re.DOTALL)


def reasoning_task(name: str) -> Made:
  """The task `reasoning_gym.NAME`: so many questions of that generator, and others as examples.

  The metric is the generator's own score, 0 to 1, of what stands between <answer> and </answer>, or of the first line.

  Raises:
    ConfigError: the package is not installed, or has no such generator.
  """
  generator = name.removeprefix(PREFIX)
  questions, examples = (_rows(name, generator, count, seed)
                         for count, seed in ((QUESTIONS, QUESTION_SEED), (EXAMPLES, EXAMPLE_SEED)))
  definition = {
    'output_type': 'generate_until', 'doc_to_text': 'Q: {{question}}\nA:', 'doc_to_target': '{{answer}}',
    'target_delimiter': ' ', 'fewshot_delimiter': '\n\n',
    'generation_kwargs': {'until': ['Q:'], 'max_gen_toks': NEW_TOKENS, 'do_sample': False},
    'process_results': functools.partial(score_answer, generator=generator),
    'metric_list': [{'metric': metric, 'aggregation': 'mean', 'higher_is_better': True} for metric in METRICS],
    'metadata': {'version': 1.0}}
  return Made(definition, questions, examples)


METRICS = ('score', 'solved')


def score_answer(doc: Mapping[str, Any], results: Sequence[Any], generator: str) -> dict[str, float]:
  """What the generator says of an answer.   results: the answer, alone or in a list."""
  written = results[0][0] if isinstance(results[0], list | tuple) else results[0]
  dataset = generated(generator, QUESTIONS, QUESTION_SEED)
  score = float(dataset.score_answer(answer_in(written), dataset[doc['number']]))
  return {'score': score, 'solved': float(score == 1)}


def answer_in(written: str) -> str:
  """The answer of a text."""
  tagged = TAGGED.findall(written)
  return (tagged[-1] if tagged else written.strip().partition('\n')[0]).strip()


@functools.cache
def generated(generator: str, count: int, seed: int) -> Any:
  """The questions of a generator; the same at every call."""
  import reasoning_gym
  return reasoning_gym.create_dataset(generator, size=count, seed=seed)


def _rows(name: str, generator: str, count: int, seed: int) -> list[dict[str, Any]]:
  require(is_installed('reasoning_gym'), '--tasks', name, "is not installed: pip install 'llm_jax[eval]'")
  from reasoning_gym.factory import DATASETS
  if generator not in DATASETS:
    near = difflib.get_close_matches(generator, DATASETS, n=3) or sorted(DATASETS)[:5]
    raise ConfigError('--tasks', name, f'no such generator: the nearest are {", ".join(PREFIX + one for one in near)}')
  dataset = generated(generator, count, seed)
  entries = [dataset[number] for number in range(count)]
  # Some generators have no answer of their own to show, only a score.
  return [{'number': number, 'question': entry['question'], 'answer': str(entry['answer'])}
          for number, entry in enumerate(entries)]
