"""Multiple choice: log-likelihoods are those of transformers, and what cannot be scored is refused before a run."""
import dataclasses
import json
import math
import pathlib
import types

import jax
import numpy as np
import pytest
import torch

from llm_jax import hf
from llm_jax.config.errors import ConfigError
from llm_jax.config.evaluations import MultipleChoice
from llm_jax.config.model.positions import LearnedPositions
from llm_jax.data.tokenizers.byte_level import ByteTokenizer
from llm_jax.evaluation.multiple_choice import MultipleChoiceEvaluation, read_questions
from llm_jax.evaluation.protocol import Evaluated, Moment
from llm_jax.modules.execution import Execution
from llm_jax.tracking.display import Table
from tests.hf import hf_models

QUESTIONS = [
  {'question': 'The sky is', 'choices': ['blue', 'a rather long answer', 'no'], 'answer': 0},
  {'question': 'Two and two are', 'choices': ['five', 'four'], 'answer': 1},
  {'question': 'Grass?', 'choices': ['green', 'red', 'x'], 'answer': 2},
]


def write(tmp_path, rows):
  path = tmp_path / 'facts.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def setup_of(model, sizes=(8, 1, 1, 1, 1)):
  """What the evaluation reads of an EvaluationSetup; sizes: of the mesh."""
  axes = ('data', 'fsdp', 'tensor', 'context', 'expert')
  mesh = jax.make_mesh(sizes, axes, devices=jax.devices()[:math.prod(sizes)],
                       axis_types=(jax.sharding.AxisType.Auto,) * len(axes))
  return types.SimpleNamespace(
    model=model, execution=Execution(), mesh=mesh, tokenizer=ByteTokenizer(),
    phase=types.SimpleNamespace(rows=8), stage=types.SimpleNamespace(name='sft'))


@pytest.fixture(scope='module')
def llama(tmp_path_factory):
  torch_model = hf_models.make(hf_models.llama(vocab_size=257))
  folder = tmp_path_factory.mktemp('llama')
  torch_model.save_pretrained(folder)
  config, params = hf.load_pretrained(str(folder))
  return torch_model.eval(), config, params


def log_likelihood(torch_model, prompt: str, choice: str) -> float:
  """By transformers' logits: what lm-evaluation-harness sums."""
  ids = [256, *f'{prompt}{choice}'.encode()]
  with torch.no_grad():
    log_probs = torch.log_softmax(torch_model(torch.tensor([ids])).logits[0].double(), -1)
  return sum(float(log_probs[place - 1, ids[place]]) for place in range(1 + len(prompt.encode()), len(ids)))


@pytest.mark.parametrize('sizes', [(1, 1, 1, 1, 1), (2, 2, 1, 1, 1), (2, 1, 1, 2, 1)])
def test_log_likelihoods_are_those_of_transformers(llama, tmp_path, sizes):
  torch_model, config, params = llama
  evaluation = MultipleChoiceEvaluation(MultipleChoice(write(tmp_path, QUESTIONS)), setup_of(config, sizes))
  with jax.set_mesh(evaluation.setup.mesh):
    found = evaluation.log_likelihoods(Evaluated(params, None, Moment.END, 3))
    result = evaluation.run(Evaluated(params, None, Moment.END, 3), {})
  expected = [[log_likelihood(torch_model, row['question'], ' ' + choice) for choice in row['choices']]
              for row in QUESTIONS]
  np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-5, atol=1e-4)
  right = [int(np.argmax(scores)) == row['answer'] for scores, row in zip(expected, QUESTIONS, strict=True)]
  assert result.metrics['facts/accuracy'] == pytest.approx(np.mean(right))
  sizes = [[len(choice) for choice in row['choices']] for row in QUESTIONS]
  per_byte = [int(np.argmax(np.divide(scores, size))) == row['answer']
              for scores, size, row in zip(expected, sizes, QUESTIONS, strict=True)]
  assert result.metrics['facts/accuracy_per_byte'] == pytest.approx(np.mean(per_byte))
  assert isinstance(result.display[0], Table) and 'of 3 questions right' in result.lines[0]


@pytest.mark.parametrize('row, message', [
  ({'question': 'a', 'choices': ['b', 'c']}, r"facts.jsonl:1': no field 'answer'"),
  ({'question': 'a', 'choices': ['b', 'c'], 'answer': 2}, 'answer 2 is no place among the 2 choices'),
  ({'question': 'a', 'choices': ['b'], 'answer': 0}, 'choices are not two texts or more'),
  ({'question': 'a', 'choices': ['b', ''], 'answer': 0}, 'choices are not two texts or more'),
  ([1], 'not a JSON object'),
])
def test_bad_rows_are_named(tmp_path, row, message):
  with pytest.raises(ConfigError, match=message):
    read_questions(pathlib.Path(write(tmp_path, [row])), None)


def test_what_cannot_be_scored_is_refused_before_a_run(llama, tmp_path):
  _, config, _ = llama
  for rows, message in (
    ([], 'it holds no question'),
    ([{'question': 'a', 'choices': ['b' * 500, 'c'], 'answer': 0}], 'positions: shorten it'),
  ):
    short = dataclasses.replace(config, positions=LearnedPositions(64))
    evaluation = MultipleChoiceEvaluation(MultipleChoice(write(tmp_path, rows)), setup_of(short))
    with pytest.raises(ConfigError, match=message):
      evaluation.check()


def test_a_token_across_the_boundary_is_refused(llama, tmp_path):
  class Merging(ByteTokenizer):
    """Writes `a b` as one token."""

    def encode(self, text):
      return np.array([7] if text == 'a b' else list(text.encode()))

  _, config, _ = llama
  setup = setup_of(config)
  setup.tokenizer = Merging()
  evaluation = MultipleChoiceEvaluation(
    MultipleChoice(write(tmp_path, [{'question': 'a', 'choices': ['b', 'c'], 'answer': 0}])), setup)
  with pytest.raises(ConfigError, match='facts.jsonl:1.*a token lies across the end of the question'):
    evaluation.check()
