"""PPO against TRL's trainer over a whole rollout, and its identities."""
import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm_jax import hf
from llm_jax.batch import LanguageModelBatch, RolloutBatch
from llm_jax.config.errors import ConfigError
from llm_jax.config.policy_gradients import PPO, Clip, KLInReward
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.frozen import Frozen
from llm_jax.objectives.log_probs import answer_log_probs
from llm_jax.objectives.ppo import CRITIC, PPOObjective, PPOWithCriticObjective
from llm_jax.objectives.scalar_head import VALUE
from llm_jax.rollout.credit import credit_of_critic
from llm_jax.train.state import TrainState
from llm_jax.train.step import accumulate, make_train_step
from tests.hf import hf_models
from tools import ppo_reference as theirs

TRL = json.loads((pathlib.Path(__file__).parents[1] / 'rollout/trl_ppo.json').read_text())
CONFIG = PPO(
  gamma=theirs.OPTIONS['gamma'], decay=theirs.OPTIONS['lam'], clip=Clip(0.2, 0.2), value_clip=0.2,
  value_weight=theirs.OPTIONS['vf_coef'], kl=KLInReward(theirs.OPTIONS['kl_coef']), whiten_rewards=True)


@functools.cache
def models():
  """Our model, the parameters of policy and critic, those of the reference, and the scores of TRL's reward model."""
  import torch
  found = theirs.make_models()
  architecture, policy = hf_models.to_ours(found['policy'])
  critic = hf.params_from_state_dict(architecture, {
    **{name: tensor.numpy() for name, tensor in found['value'].model.state_dict(prefix='model.').items()},
    'lm_head.weight': found['policy'].lm_head.weight.detach().numpy()})
  critic = {**critic, VALUE: {'w': found['value'].score.weight.detach().numpy().T.copy()}}
  with torch.no_grad():
    tokens = torch.tensor(theirs.make_tokens())
    scores = found['reward'](tokens, attention_mask=torch.ones_like(tokens)).logits[:, 0].numpy()
  model = Transformer(architecture, Execution(unroll=False, kernels='xla'))  # compiles faster
  return model, {**policy, CRITIC: critic}, hf_models.to_ours(found['reference'])[1], scores


def text() -> LanguageModelBatch:
  tokens = theirs.make_tokens().astype(np.int32)
  weights = np.zeros((len(tokens), tokens.shape[1] - 1), np.float32)
  weights[:, theirs.PROMPT - 1:] = 1
  positions = np.broadcast_to(np.arange(weights.shape[1], dtype=np.int32), weights.shape)
  return LanguageModelBatch(tokens[:, :-1], tokens[:, 1:], weights, positions, np.ones_like(positions))


@functools.cache
def rollout() -> tuple[RolloutBatch, dict[str, float]]:
  model, params, reference, scores = models()
  objective = PPOWithCriticObjective(model, CONFIG, temperature=theirs.OPTIONS['temperature'])
  old, values = jax.jit(objective.log_probs_and_values)(params, text())
  reference_log_probs = jax.jit(functools.partial(
    answer_log_probs, model, temperature=theirs.OPTIONS['temperature']))(reference, text())
  credit = credit_of_critic(CONFIG, scores, np.asarray(old), np.asarray(reference_log_probs), np.asarray(values),
                            text().weights > 0)
  batch = RolloutBatch(text(), credit.advantages, np.asarray(old), np.asarray(reference_log_probs), credit.values,
                       credit.returns)
  return batch, credit.numbers


def test_trl():
  """Two steps of one rollout: what is logged, and every parameter of policy and critic after them."""
  model, params, _, scores = models()
  objective = PPOWithCriticObjective(model, CONFIG, temperature=theirs.OPTIONS['temperature'])
  batch, _ = rollout()
  kl = (batch.old_log_probs - batch.reference_log_probs).sum(1).mean()
  assert TRL['metrics']['objective/kl'] == pytest.approx(kl, abs=1e-5)
  assert TRL['metrics']['objective/scores'] == pytest.approx(scores.mean(), abs=1e-6)
  step = jax.jit(make_train_step(objective, optax.sgd(1.0), lambda step: theirs.RATE))
  state = TrainState.create(jax.tree.map(jnp.asarray, params), optax.sgd(1.0), ema=False)
  logged = []
  for _ in range(theirs.STEPS):
    state, metrics = step(state, Frozen(), batch)
    logged.append({name: float(metrics[name].total / metrics[name].weight) for name in ('policy_loss', 'value_loss')})
  for mine, other in (('policy_loss', 'loss/policy_avg'), ('value_loss', 'loss/value_avg')):
    assert np.mean([step[mine] for step in logged]) == pytest.approx(TRL['metrics'][other], abs=2e-6)
  change = jax.tree.map(lambda new, old: np.float64(new) - np.float64(old), state.params, params)
  critic = change.pop(CRITIC)
  head = critic.pop(VALUE)['w'].T
  names = hf.state_dict_from_params(model.config, change)
  of_critic = {name: tensor for name, tensor in hf.state_dict_from_params(model.config, critic).items()
               if name != 'lm_head.weight'}
  for kind, found in (('policy', names), ('value', {**of_critic, 'score.weight': head})):
    assert found.keys() == TRL['changes'][kind].keys()
    for name, want in TRL['changes'][kind].items():
      rounding = 5e-7  # of parameters near 1
      bound = 2e-5 * np.linalg.norm(found[name]) + rounding
      np.testing.assert_allclose(theirs.shadows({name: found[name]})[name], want, atol=bound, err_msg=name)


def test_the_ratio_of_the_first_step_is_1():
  """At a temperature other than 1, with dropout configured; and then the policy's loss is minus the mean advantage."""
  model, params, _, _ = models()
  dropped = Transformer(dataclasses.replace(model.config, dropout=0.5), model.execution)
  objective = PPOWithCriticObjective(dropped, CONFIG, temperature=theirs.OPTIONS['temperature'])
  batch, _ = rollout()
  loss = jax.jit(objective)(params, Frozen(), batch, jax.random.key(0))
  ratio = loss.metrics['ratio']
  assert float(ratio.total / ratio.weight) == pytest.approx(1, abs=1e-5)
  assert float(loss.metrics['ratio_max'].value) == pytest.approx(1, abs=1e-5)
  assert float(loss.metrics['policy_loss'].total) == pytest.approx(-batch.advantages.sum(), abs=1e-4)


def test_without_advantage_and_error_there_is_no_gradient():
  model, params, _, _ = models()
  batch, _ = rollout()
  still = batch.replace(advantages=np.zeros_like(batch.advantages), returns=batch.values)
  objective = PPOWithCriticObjective(model, CONFIG, temperature=theirs.OPTIONS['temperature'])
  grads, _ = jax.jit(lambda params: accumulate(objective, params, Frozen(), still, jax.random.key(0), 1))(params)
  assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads)) < 1e-5


@pytest.mark.parametrize('critic', ['shared', 'apart'])
def test_microbatches_give_the_same_gradient(critic):
  model, params, _, _ = models()
  if critic == 'shared':
    objective = PPOObjective(model, dataclasses.replace(CONFIG, critic='shared'))
    params = {**params, VALUE: params[CRITIC][VALUE]}
    del params[CRITIC]
  else:
    objective = PPOWithCriticObjective(model, CONFIG)
  batch, _ = rollout()
  weights = batch.text.weights * (np.arange(10) < np.arange(3, 11)[:, None])
  ragged = batch.replace(text=batch.text.replace(weights=weights))
  run = jax.jit(lambda pieces: accumulate(objective, params, Frozen(), ragged, jax.random.key(0), pieces),
                static_argnums=0)
  whole, loss = run(1)
  for pieces in (2, 4):
    grads, other = run(pieces)
    np.testing.assert_allclose(other.total, loss.total, rtol=2e-6)
    for got, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(whole), strict=True):
      np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_a_critic_starts_as_the_policy_does():
  model, params, _, _ = models()
  objective = PPOWithCriticObjective(model, CONFIG)
  decoder = {name: tree for name, tree in params.items() if name != CRITIC}
  head = {'w': np.ones((16, 1))}
  found = objective.start_parameters({CRITIC: {**jax.tree.map(np.zeros_like, decoder), VALUE: head}}, decoder)[CRITIC]
  np.testing.assert_array_equal(found.pop(VALUE)['w'], head['w'])
  jax.tree.map(np.testing.assert_array_equal, found, decoder)


@pytest.mark.parametrize('wrong', [{'gamma': 1.5}, {'decay': -0.1}, {'value_clip': 0.0}, {'critic': 'none'},
                                   {'clip': Clip(most=3.0)}])
def test_wrong_options(wrong):
  with pytest.raises(ConfigError):
    PPO(**wrong)
