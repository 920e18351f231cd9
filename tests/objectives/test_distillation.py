"""Distillation against TRL's generalised Jensen-Shannon divergence on the logits of transformers' models."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from llm_jax import hf
from llm_jax.config.errors import ConfigError
from llm_jax.config.objectives import Distillation
from llm_jax.config.stage_init import Params
from llm_jax.draw import draw
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.distillation import DistillationObjective, sampled_cross_entropy
from llm_jax.objectives.frozen import Frozen, FrozenModel
from llm_jax.train.step import accumulate
from tests.hf import hf_models

CONFIGS = {
  'forward': Distillation(Params('teacher')),
  'mostly forward': Distillation(Params('teacher'), divergence=0.1, temperature=2.0),
  'half': Distillation(Params('teacher'), divergence=0.5),
  'reverse': Distillation(Params('teacher'), divergence=1.0, temperature=0.7),
}


@functools.cache
def models():
  """Transformers' student and a wider teacher; our student with its parameters; our teacher."""
  student = hf_models.make(hf_models.llama(), 0)
  teacher = hf_models.make(hf_models.llama(hidden_size=48, num_hidden_layers=3), 1)
  for parameter in (*student.lm_head.parameters(), *teacher.lm_head.parameters()):
    parameter.data *= 20  # so that they expect something
  architecture, params = hf_models.to_ours(student)
  their_architecture, their_params = hf_models.to_ours(teacher)
  execution = Execution(unroll=False, kernels='xla')  # compiles faster
  frozen = Frozen(teacher=FrozenModel(their_params, Transformer(their_architecture, execution)))
  # TRL's own gradients lose five digits in float32 where the two hardly differ.
  return student.double(), teacher.double(), Transformer(architecture, execution), params, frozen


@functools.cache
def ours(name, microbatches=1):
  """(gradient sums, Loss) as the training step has them."""
  _, _, model, params, frozen = models()
  objective = DistillationObjective(model, CONFIGS[name])
  step = jax.jit(lambda params, batch: accumulate(objective, params, frozen, batch, jax.random.key(0), microbatches))
  return step(params, hf_models.batch())


@pytest.mark.parametrize('name', CONFIGS)
def test_trl(name):
  """Loss and gradients of generalized_jsd_loss."""
  from trl.experimental.gkd import GKDTrainer
  student, teacher, model, _, _ = models()
  student.zero_grad()
  batch, config = hf_models.batch(), CONFIGS[name]
  tokens, targets, weights = (torch.tensor(np.asarray(x)) for x in (batch.tokens, batch.targets, batch.weights))
  with torch.no_grad():
    expected = teacher(tokens.long()).logits
  labels = torch.where(weights > 0, targets.long(), -100)
  want = GKDTrainer.generalized_jsd_loss(student(tokens.long()).logits, expected, labels, config.divergence,
                                         config.temperature)
  want.backward()
  grads, loss = ours(name)
  weight = float(batch.weights.sum())
  assert abs(loss.total / weight - want.item()) <= 1e-6 * max(1, want.item())
  mine = hf.state_dict_from_params(model.config, grads)
  for parameter_name, parameter in student.named_parameters():
    gradient = parameter.grad.numpy()
    error = np.linalg.norm(np.float64(mine[parameter_name]) / weight - gradient) / np.linalg.norm(gradient)
    assert error <= 1e-5, f'{parameter_name}: {error}'


def test_microbatches_give_the_same_gradient():
  whole, loss = ours('half')
  grads, other = ours('half', 3)
  np.testing.assert_allclose(other.total, loss.total, rtol=1e-6)
  for got, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(whole), strict=True):
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=5e-6)


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
  _, _, model, params, _ = models()
  frozen = Frozen(teacher=FrozenModel(params, model))
  for name in ('forward', 'half', 'reverse'):
    objective = DistillationObjective(model, CONFIGS[name])
    run = jax.jit(lambda params, objective=objective: accumulate(objective, params, frozen, hf_models.batch(),
                                                                 jax.random.key(0), 1))
    grads, loss = run(params)
    assert abs(float(loss.total)) < 1e-4
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads)) < 1e-4


def test_drawn_ids_have_the_teachers_probabilities():
  """Their cross-entropy is, on the mean, that of all probabilities; that of the likeliest ids alone is not."""
  rng = np.random.default_rng(0)
  student, teacher = (jnp.asarray(2 * rng.standard_normal((64, 31)), jnp.float32) for _ in range(2))
  exact = -(jax.nn.softmax(teacher) * jax.nn.log_softmax(student)).sum(-1)
  drawn = draw(jax.nn.softmax(teacher), jax.random.key(0), 2_000)
  np.testing.assert_allclose(sampled_cross_entropy(student, drawn), exact, atol=0.2)
  assert abs(float((sampled_cross_entropy(student, drawn) - exact).mean())) < 0.01
  likeliest = jax.lax.top_k(teacher, 3)[1]
  assert abs(float((sampled_cross_entropy(student, likeliest) - exact).mean())) > 0.05


def test_a_few_drawn_ids_stand_for_all_probabilities():
  """Their gradient points where that of the forward divergence does, and other keys draw others."""
  _, _, model, params, frozen = models()
  config = Distillation(Params('teacher'), sampled=64)
  objective = DistillationObjective(model, config)
  step = jax.jit(lambda key: accumulate(objective, params, frozen, hf_models.batch(), key, 1))
  grads, loss = step(jax.random.key(0))
  _, other = step(jax.random.key(1))
  assert float(loss.total) != float(other.total)
  exact, _ = ours('forward')
  a, b = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (grads, exact))
  assert a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) > 0.8


@pytest.mark.parametrize('wrong', [{'divergence': 1.5}, {'temperature': 0.0}, {'nll_weight': -1.0}, {'sampled': 0},
                                   {'sampled': 4, 'divergence': 0.5}, {'sampled': 4, 'temperature': 2.0}])
def test_wrong_options(wrong):
  with pytest.raises(ConfigError):
    Distillation(Params('teacher'), **wrong)
