"""Official tasks on local files, tasks of one's own, and those that are made of the standard library."""
import gzip
import json
import re

import numpy as np
import pytest
import reasoning_gym
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from llm_jax.config.errors import ConfigError
from llm_jax.data.tokenizers.byte_level import ByteTokenizer
from llm_jax.harness.index import Index, find, official, scan
from llm_jax.harness.run import Asking, prepare, run, scores
from llm_jax.harness.standard_library import CHOICES, EXAMPLES, MADE
from llm_jax.harness.statistics import pooled
from llm_jax.harness.tasks import TaskSource, build_requests, load_tasks, read_rows
from llm_jax.harness.text import HarnessText
from tests.harness import small_tasks

GSM8K = [{'question': f'How many are {i} apples and 2?', 'answer': f'They are {i} and 2.\n#### {i + 2}'}
         for i in range(8)]
NOTHING = Index({}, frozenset())


def write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def prompts(source, limit=None, seed=1):
  tasks = load_tasks(source).tasks
  return {name: [request.args[0] for request in requests]
          for name, requests in build_requests(tasks, limit, seed, None, None, True).items()}


# ---------------------------------------------------------------------------------------------- definitions
def test_an_official_task_keeps_its_prompt_and_its_examples(tmp_path):
  path = write(tmp_path / 'gsm8k.jsonl', GSM8K)
  [prompt, *_] = prompts(TaskSource(('gsm8k_cot',), {'gsm8k_cot': path}))['gsm8k_cot']
  assert prompt.startswith('Q: There are 15 trees in the grove.') and prompt.count('\n\nQ: ') == 8
  assert prompt.endswith('So she has 23 - 15 dollars left. 23 - 15 is 8. The answer is 8.\n\n'
                         'Q: How many are 0 apples and 2?\nA:')


def test_it_extracts_as_it_does(tmp_path):
  path = write(tmp_path / 'gsm8k.jsonl', GSM8K)
  task = load_tasks(TaskSource(('gsm8k_cot',), {'gsm8k_cot': path})).tasks['gsm8k_cot']
  assert [filter_.name for filter_ in task._filters] == ['strict-match', 'flexible-extract']


@pytest.mark.parametrize('has_file', [False, True])
def test_examples_are_never_the_question_itself(tmp_path, has_file):
  rows = small_tasks.rows(20)
  for i, row in enumerate(rows):
    row['question'] = f'Number {i}?'
  data = {'choices': write(tmp_path / 'rows.jsonl', rows)}
  others = [{**row, 'question': f'Example {i}?'} for i, row in enumerate(rows)]
  examples = {'choices': write(tmp_path / 'others.jsonl', others)} if has_file else {}
  small_tasks.write(tmp_path)
  write(tmp_path / 'rows.jsonl', rows)
  source = TaskSource(('choices',), data, examples, num_fewshot=5, own=scan(tmp_path))
  for prompt in prompts(source)['choices']:
    asked = re.findall(r'(?:Number|Example) \d+', prompt)
    assert len(set(asked)) == 6 and all(question.startswith('Example') for question in asked[:-1]) == has_file


def test_the_index_has_the_names_of_the_harness():
  manager = TaskManager(include_defaults=False, include_path=str(official().tasks['arc_easy'].path.parent))
  assert official().tasks.keys() >= set(manager.all_subtasks) == {'arc_easy', 'arc_challenge', 'arc_challenge_chat'}
  assert {'mmlu', 'ai2_arc', 'mmlu_anatomy'} <= {*official().collections, *official().tasks}
  assert official().tasks['humaneval'].unsafe and not official().tasks['gsm8k'].unsafe
  assert find('mmlu', NOTHING) is None
  assert find('arc_easy', NOTHING).path.name == 'arc_easy.yaml'


def test_one_of_ones_own_comes_first(tmp_path):
  (tmp_path / 'mine.yaml').write_text('task: arc_easy\noutput_type: loglikelihood\n')
  assert find('arc_easy', scan(tmp_path)).path == tmp_path / 'mine.yaml'
  assert find(str(tmp_path / 'mine.yaml'), NOTHING).path == tmp_path / 'mine.yaml'


# ---------------------------------------------------------------------------------------------- rows
@pytest.mark.parametrize('name', ['rows.jsonl', 'rows.json', 'rows.jsonl.gz', 'rows.parquet'])
def test_files_of_rows(tmp_path, name):
  path = tmp_path / name
  lines = '\ufeff' + '\n'.join(json.dumps(row) for row in GSM8K) + '\n\n'
  if name.endswith('.gz'):
    path.write_bytes(gzip.compress(lines.encode()))
  elif name.endswith('.parquet'):
    import datasets
    datasets.Dataset.from_list(GSM8K).to_parquet(str(path))
  else:
    path.write_text(json.dumps(GSM8K) if name.endswith('.json') else lines)
  assert read_rows(path) == GSM8K


@pytest.mark.parametrize('content, line', [
  ('{"a": 1}\n{"a": \n', r"rows.jsonl:2' = .*|rows.jsonl:2.*is no JSON"), ('', 'it holds no row'), ('[1]', 'row 1'),
  ('\n', 'it holds no row')])
def test_files_that_are_none(tmp_path, content, line):
  (tmp_path / 'rows.jsonl').write_text(content)
  with pytest.raises(ConfigError, match=line):
    read_rows(tmp_path / 'rows.jsonl')


def test_columns_that_do_not_fit_are_named(tmp_path):
  path = write(tmp_path / 'rows.jsonl', [{'text': 'a', 'label': 1}])
  with pytest.raises(ConfigError, match="arc_easy=.*does not fit the task .*'question' is undefined.*are text, label"):
    load_tasks(TaskSource(('arc_easy',), {'arc_easy': path}))


def test_a_row_that_does_not_fit_is_found_before_a_run(tmp_path):
  row = {'question': 'What?', 'choices': {'text': ['a', 'b'], 'label': ['A', 'B']}, 'answerKey': 'A'}
  path = write(tmp_path / 'rows.jsonl', [row, row, {**row, 'answerKey': 'C'}])
  with pytest.raises(ConfigError, match='does not fit the task'):
    prompts(TaskSource(('arc_easy',), {'arc_easy': path}, num_fewshot=0))


def test_too_few_examples_are_told(tmp_path):
  path = write(tmp_path / 'rows.jsonl', GSM8K[:3])
  with pytest.raises(ConfigError, match='does not fit the task'):
    prompts(TaskSource(('gsm8k',), {'gsm8k': path}, num_fewshot=5))


@pytest.mark.parametrize('source, line', [
  (TaskSource(('arc_esy',)), 'the nearest are arc_easy'), (TaskSource(()), 'name at least one task'),
  (TaskSource(('humaneval',)), 'say --allow_code'), (TaskSource(('stdlib_names', 'stdlib_names')), 'asked for twice')])
def test_what_cannot_be_asked(source, line):
  with pytest.raises(ConfigError, match=line):
    load_tasks(source)


# ---------------------------------------------------------------------------------------------- made
@pytest.mark.parametrize('name', MADE)
def test_tasks_of_the_standard_library(name):
  made = MADE[name]()
  assert len(made.examples) == EXAMPLES and len(made.questions) > 1_000
  assert all(len(set(row['choices'])) >= CHOICES - 1 for row in made.questions[:200])
  places = [row['answer'] for row in made.questions]
  assert all(0.2 < places.count(place) / len(places) < 0.3 for place in range(CHOICES))  # no place is a good guess
  assert made == MADE[name]()  # a function of the files
  found = prompts(TaskSource((name,), num_fewshot=2), limit=3)[name]
  assert len(found) == 3 * CHOICES and found[0].count('def ') >= 3


def test_a_name_does_not_stand_in_its_own_question():
  for row in MADE['stdlib_names']().questions[:300]:
    assert not re.search(rf'\b{row["choices"][row["answer"]]}\b', row['question'])


# ---------------------------------------------------------------------------------------------- programs
def test_human_eval_runs_what_is_answered():
  with pytest.raises(ConfigError, match="--tasks = 'human_eval': it runs code that the model writes: say --allow_code"):
    load_tasks(TaskSource(('human_eval',)))
  task = load_tasks(TaskSource(('human_eval',), allow_code=True, samples=10)).tasks['human_eval']
  [request] = build_requests({'human_eval': task}, 1, 0, None, None, True)['human_eval']
  doc = request.doc
  assert request.args[0] == doc['prompt'] and request.args[1]['do_sample'] and request.repeats == 10
  right = doc['canonical_solution']
  forking = '    import os; os.fork()\n'
  request.resps = [right, '    return None\n', right, '  x =\n', *[forking] * 6]
  task._instances = [request]
  task.apply_filters()
  found = task.process_results(doc, [request.filtered_resps['answers']])
  assert found['pass@1'] == pytest.approx(0.2) and found['pass@10'] == 1
  assert (found['share_passed'], found['share_failed'], found['share_stopped']) == (0.2, 0.2, 0.6)


# ---------------------------------------------------------------------------------------------- reasoning-gym
def test_generated_questions_are_scored_by_their_generator():
  name = 'reasoning_gym.chain_sum'
  task = load_tasks(TaskSource((name,), num_fewshot=2)).tasks[name]
  [request, *_] = build_requests({name: task}, 3, 1, None, None, True)[name]
  asked = re.findall(r'Q: (.*?)\nA:', request.args[0], re.DOTALL)
  assert len(set(asked)) == 3 and request.args[0].endswith('\nA:')
  docs = list(task.eval_docs)
  dataset = reasoning_gym.create_dataset('chain_sum', size=500, seed=0)
  assert [doc['question'] for doc in docs] == [entry['question'] for entry in dataset]
  for doc in docs[:20]:
    assert task.process_results(doc, [f' {doc["answer"]}\nQ: next']) == {'score': 1.0, 'solved': 1.0}
    assert task.process_results(doc, [f'So <answer>{doc["answer"]}</answer>'])['solved'] == 1
    wrong = task.process_results(doc, ['x'])
    assert wrong['solved'] == 0 and wrong['score'] == dataset.score_answer('x', dataset[doc['number']])


def test_an_unknown_generator_is_named():
  with pytest.raises(ConfigError, match='no such generator: the nearest are reasoning_gym.chain_sum'):
    load_tasks(TaskSource(('reasoning_gym.chain_sums',)))


# ---------------------------------------------------------------------------------------------- groups
def test_a_group_of_ones_own_has_the_mean_of_its_tasks(tmp_path, monkeypatch):
  """By questions or by tasks, as it says; and the error of either."""
  monkeypatch.setenv('HF_DATASETS_CACHE', str(tmp_path / 'cache'))
  small_tasks.write(tmp_path)
  for name, count in (('letters', 8), ('choices', 4)):
    data = write(tmp_path / f'{name}.jsonl', small_tasks.rows(count))
    path = tmp_path / f'{name}.yaml'
    path.write_text(f'{path.read_text()}dataset_path: json\ntest_split: test\ndataset_kwargs:\n'
                    f'  data_files: {{test: {data}}}\n')
  for name, by_size in (('pooled', 'true'), ('alike', 'false')):
    (tmp_path / f'{name}.yaml').write_text(f'group: {name}\ntask: [letters, choices]\naggregate_metric_list:\n'
                                           f'  - {{metric: acc, aggregation: mean, weight_by_size: {by_size}}}\n')
  text = HarnessText(ByteTokenizer(), None, True, 257, 400)
  for name in ('pooled', 'alike'):
    prepared = prepare(TaskSource((name,), own=scan(tmp_path)), Asking(), text)
    found = {score.task: score for score in scores(run(Shortest(), prepared, Asking(), False)) if score.metric == 'acc'}
    parts = [found[task].estimate for task in ('letters', 'choices')]
    weights = (8, 4) if name == 'pooled' else (1, 1)
    assert found[name].value == pytest.approx(np.average([part.mean for part in parts], weights=weights))
    assert found[name].estimate == pooled(parts, weights) and parts[0].mean != parts[1].mean


class Shortest(LM):
  """Finds the shortest choice the likeliest."""

  def loglikelihood(self, requests):
    return [(-float(len(request.args[1])), False) for request in requests]

  loglikelihood_rolling = generate_until = None
