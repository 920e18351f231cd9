"""Tasks of the harness as evaluations of a stage, against other evaluations and against transformers."""
import dataclasses
import math
import types

import jax
import numpy as np
import pytest

from llm_jax.config.errors import ConfigError
from llm_jax.config.evaluations import GoldBitsPerByte, MultipleChoice, Tasks
from llm_jax.evaluation.gold_bits import GoldBitsPerByteEvaluation
from llm_jax.evaluation.multiple_choice import MultipleChoiceEvaluation
from llm_jax.evaluation.protocol import Evaluated, Moment
from llm_jax.evaluation.tasks import TasksEvaluation
from llm_jax.modules.execution import Execution
from llm_jax.report.displays import displays
from llm_jax.tracking.display import Curves, Table, from_record, to_record
from tests.evaluation.test_multiple_choice import QUESTIONS, llama, log_likelihood, setup_of, write  # noqa: F401

YAML = """task: facts
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""


@pytest.fixture
def facts(tmp_path):
  """(name of the task, its data as a configuration names it)."""
  (tmp_path / 'facts.yaml').write_text(YAML)
  return f'{tmp_path}/facts.yaml', f'{tmp_path}/facts.yaml={write(tmp_path, QUESTIONS)}'


def setup(config):
  made = setup_of(config, (1, 1, 1, 1, 1))
  made.execution = Execution(unroll=False, kernels='xla')
  made.run = types.SimpleNamespace(seed=0)
  made.stage = types.SimpleNamespace(name='sft', seq_len=64, data=types.SimpleNamespace(template=None))
  return made


def test_tasks_score_what_multiple_choice_does(llama, tmp_path, facts):  # noqa: F811
  _, config, params = llama
  evaluation = TasksEvaluation(Tasks((facts[0],), (facts[1],), every=5), setup(config))
  evaluation.check()
  other = MultipleChoiceEvaluation(MultipleChoice(write(tmp_path, QUESTIONS)), setup(config))
  model = Evaluated(params, None, Moment.END, 7)
  with jax.set_mesh(evaluation.setup.mesh):
    result, expected = evaluation.run(model, {}), other.run(model, {}).metrics
  assert result.metrics == pytest.approx({'tasks/facts/acc': expected['facts/accuracy'],
                                          'tasks/facts/acc_norm': expected['facts/accuracy_per_byte']})
  table, curves = result.display
  assert isinstance(table, Table)
  assert [row[:3] for row in table.rows] == [('facts', '0', 'acc'), ('facts', '0', 'acc_norm')]
  assert curves.lines == (('facts/acc', 'tasks/facts/acc'), ('facts/acc_norm', 'tasks/facts/acc_norm'))
  step = evaluation.run(dataclasses.replace(model, moment=Moment.STEP), {})
  assert step.metrics == result.metrics and not step.display and 'at step 7' in step.lines[0]


def test_gold_bits_are_those_of_transformers(llama, facts):  # noqa: F811
  torch_model, config, params = llama
  evaluation = GoldBitsPerByteEvaluation(GoldBitsPerByte((facts[0],), (facts[1],)), setup(config))
  evaluation.check()
  found = evaluation.run(Evaluated(params, None, Moment.END, 7), {})
  bits = []
  for row in QUESTIONS:
    choice = row['choices'][row['answer']]
    log_prob = log_likelihood(torch_model, row['question'], ' ' + choice)
    bits.append(-log_prob / math.log(2) / len(choice.encode()))
  assert found.metrics == {'gold_bits_per_byte/facts': pytest.approx(np.mean(bits), rel=1e-5)}


@pytest.mark.parametrize('config, line', [
  (lambda: Tasks(()), 'names'), (lambda: Tasks(('a',), ('b=c',)), "data = 'b=c': write it as TASK=FILE"),
  (lambda: GoldBitsPerByte(('a',), limit=0), 'limit = 0'), (lambda: Tasks(('a',), every=-1), 'every = -1'),
  (lambda: Tasks(('a',), num_fewshot=-1), 'num_fewshot = -1')])
def test_wrong_configurations_are_refused(config, line):
  with pytest.raises(ConfigError, match=line):
    config()


def test_what_cannot_be_scored_is_refused_before_a_run(llama, facts):  # noqa: F811
  _, config, _ = llama
  made = setup(config)
  made.model = dataclasses.replace(config, positions=dataclasses.replace(config.positions, max_length=8))
  for kind, evaluation in ((Tasks, TasksEvaluation), (GoldBitsPerByte, GoldBitsPerByteEvaluation)):
    with pytest.raises(ConfigError, match='facts, question 0 = .*: the model reads 8'):
      evaluation(kind((facts[0],), (facts[1],)), made).check()


def test_curves_are_drawn_from_the_records():
  block = Curves('Tasks', '', 'sft: tasks', 'sft', 'value', (('acc', 'tasks/facts/acc'),))
  assert from_record(to_record(block)) == block
  display = {'kind': 'display', 'stage': 'sft', 'step': 10, 'blocks': [to_record(block)]}
  records = [{'kind': 'eval', 'stage': 'sft', 'step': step, 'tasks/facts/acc': step / 10} for step in (2, 4)]
  drawn = displays([*records, {'kind': 'final', 'stage': 'sft', 'step': 10, 'tasks/facts/acc': 0.9}, display])
  assert '<svg' in drawn and 'sft: tasks' in drawn
  assert '<svg' not in displays([records[0], display])  # one value is no curve
