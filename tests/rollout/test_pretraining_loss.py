"""Text learnt beside sampled answers: the two losses by themselves and together, in microbatches, and resumed."""
import dataclasses
import functools

import jax
import numpy as np
import pytest

from llm_jax.config.data import Data, Weighted
from llm_jax.config.errors import ConfigError
from llm_jax.config.objectives import LanguageModel
from llm_jax.config.policy_gradients import PPO, dapo, grpo
from llm_jax.config.prompt_sources import DigitTexts, SortedDigits
from llm_jax.config.rollout import PretrainingLoss
from llm_jax.data.batches import TrainSource
from llm_jax.data.dataset import open_dataset
from llm_jax.objectives.frozen import Frozen
from llm_jax.objectives.policy_gradient import PolicyGradientObjective
from llm_jax.objectives.ppo import PPOObjective
from llm_jax.objectives.scalar_head import VALUE, init_scalar_head
from llm_jax.rollout.pretraining_source import PretrainingSource
from llm_jax.train.step import accumulate
from tests.rollout import test_source

TEXT = PretrainingLoss(Data((Weighted(DigitTexts(3, 100)),), 'best_fit'), batch_size=8, weight=3.0)
PLACEMENT = test_source.make_source(test_source.make_stage())._sharding


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
  return open_dataset(TEXT.data, test_source.TOKENIZER, seq_len=32, seed=7, split='train',
                      cache_dir=tmp_path_factory.mktemp('cache'))


def make_source(dataset, objective=None, batch_size=TEXT.batch_size):
  stage = dataclasses.replace(test_source.make_stage(objective), pretraining_loss=TEXT)
  text = TrainSource(dataset, batch_size, PLACEMENT)
  return test_source.make_source(stage, kind=functools.partial(PretrainingSource, text))


def mean_of_text(model, params, text):
  """-log p(target) in NumPy, from logits of the whole model."""
  logits = np.float64(model.apply({'params': params}, text.tokens, text.positions, text.segment_ids))
  log_probs = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) - logits.max(
    -1, keepdims=True)
  chosen = np.take_along_axis(log_probs, np.asarray(text.targets)[..., None], -1)[..., 0]
  return -(chosen * text.weights).sum() / text.weights.sum()


@functools.cache
def with_head(kind):
  model, params = test_source.model()
  head = {VALUE: init_scalar_head(model.config, jax.random.key(1))} if kind is PPOObjective else {}
  return model, {**params, **head}


@pytest.mark.parametrize('config, kind', [(dapo(), PolicyGradientObjective), (grpo(), PolicyGradientObjective),
                                          (PPO(kl=None, critic='shared'), PPOObjective)],
                         ids=['tokens', 'answers', 'PPO'])
def test_the_loss_is_that_of_the_answers_and_the_weighted_mean_of_the_text(config, kind, dataset):
  """Whatever the number of microbatches; text rows differ in how many targets they have."""
  model, params = with_head(kind)
  source = make_source(dataset, config)
  if kind is PPOObjective:
    objective = kind(model, config, temperature=0.8)
    source._policy = dataclasses.replace(source._policy, values=objective.values)
  objective = kind(model, config, temperature=0.8)
  batch = source.next(test_source.State(params), Frozen())
  answers = dataclasses.replace(batch, pretraining=None)
  found = jax.jit(objective)(params, Frozen(), answers, None)
  text = batch.pretraining
  want = found.total / found.weight + 3.0 * mean_of_text(model, params, text)
  gradients = []
  for microbatches in (1, 2, 4):
    step = jax.jit(functools.partial(accumulate, objective, microbatches=microbatches))
    grads, loss = step(params, Frozen(), batch, jax.random.key(0))
    np.testing.assert_allclose(loss.total / loss.weight, want, rtol=1e-5)
    nll = loss.metrics['pretraining_nll']
    np.testing.assert_allclose(nll.total / nll.weight, mean_of_text(model, params, text), rtol=1e-5)
    gradients.append(jax.tree.map(lambda leaf, loss=loss: leaf / loss.weight, grads))
  for other in gradients[1:]:
    for mine, theirs in zip(jax.tree.leaves(other), jax.tree.leaves(gradients[0]), strict=True):
      np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=2e-5)  # of up to 1.5
  alone, loss = jax.jit(functools.partial(accumulate, objective, microbatches=1))(
    params, Frozen(), answers, jax.random.key(0))
  assert any(np.abs(mine - theirs / loss.weight).max() > 1e-3
             for mine, theirs in zip(jax.tree.leaves(gradients[0]), jax.tree.leaves(alone), strict=True))


def test_text_is_that_of_its_own_source_and_goes_on_bitwise(dataset):
  whole = test_source.take(make_source(dataset), 6)
  alone = TrainSource(dataset, TEXT.batch_size)
  for batch in whole:
    text = alone.next()
    np.testing.assert_array_equal(batch.pretraining.tokens, text.tokens)
    np.testing.assert_allclose(batch.pretraining.weights.sum(), 3.0 * batch.text.weights.sum(), rtol=1e-6)
  alone.close()
  source = make_source(dataset)
  test_source.take(source, 3)
  resumed = make_source(dataset)
  resumed.restore(source.position(), {name: np.asarray(array) for name, array in source.arrays().items()})
  assert test_source.same(test_source.take(resumed, 3), whole[3:])
  form = lambda batch: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), batch.pretraining)
  assert all(form(batch) == form(whole[0]) for _, batch in resumed.shapes())
  for each in (source, resumed):
    each.close()


def test_other_text_is_refused_on_resume(dataset):
  source = make_source(dataset)
  test_source.take(source, 1)
  other = make_source(dataset, batch_size=4)
  with pytest.raises(ConfigError, match="pretraining_loss.batch_size = '4': the checkpoint was made with 8"):
    other.restore(source.position(), source.arrays())
  source.close()


@pytest.mark.parametrize('fields, message', [
  (dict(pretraining_loss=dataclasses.replace(TEXT, batch_size=3), microbatches=2), 'use a multiple of microbatches=2'),
  (dict(pretraining_loss=TEXT, rollout=None, data=TEXT.data, objective=LanguageModel()),
   'pretraining_loss = .*mix the text into data'),
])
def test_stages_that_are_refused(fields, message):
  with pytest.raises(ConfigError, match=message):
    dataclasses.replace(test_source.make_stage(), **fields)


@pytest.mark.parametrize('fields, message', [
  (dict(data=Data((Weighted(SortedDigits()),))), 'has prompts: use text or conversations'),
  (dict(weight=0.0), 'weight = 0.0: use a finite number above 0'),
  (dict(data=Data((Weighted(DigitTexts(), ((0, 1.0), (1, 0.5))),))), 'mixed by weights that stay'),
])
def test_text_that_is_refused(fields, message):
  with pytest.raises(ConfigError, match=message):
    dataclasses.replace(TEXT, **fields)
