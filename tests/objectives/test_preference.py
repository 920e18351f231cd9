"""Preference losses against TRL's trainer, and against their formulas in float64 NumPy."""
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from llm_jax import hf
from llm_jax.batch import LanguageModelBatch, PreferenceBatch
from llm_jax.config import objectives as config
from llm_jax.config.implementation import load
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.frozen import Frozen
from llm_jax.objectives.log_probs import sequence_log_probs, token_log_probs
from llm_jax.objectives.loss import as_numbers
from llm_jax.objectives.preference import _log1mexp
from tests.hf import hf_models

FORMS = {
  'dpo': (config.DPO(beta=0.3), dict(loss_type='sigmoid', beta=0.3)),
  'dpo smoothed': (config.DPO(beta=0.3, label_smoothing=0.1), None),  # TRL has no conservative DPO
  'dpo with nll': (config.DPO(beta=0.3, nll_weight=0.2), dict(loss_type=['sigmoid', 'sft'], loss_weights=[1.0, 0.2],
                                                             beta=0.3)),
  'ipo': (config.IPO(beta=0.3), dict(loss_type='ipo', beta=0.3)),
  'hinge': (config.SLiC(beta=0.3), dict(loss_type='hinge', beta=0.3)),
  'apo zero': (config.APOZero(beta=0.3), dict(loss_type='apo_zero', beta=0.3)),
  'apo down': (config.APODown(beta=0.3), dict(loss_type='apo_down', beta=0.3)),
  'orpo': (config.ORPO(beta=0.3), None),
  'simpo': (config.SimPO(beta=2.0, gamma=0.7), None),
}


def objective_of(form, model, sources=()):
  return load(form)(model, form, sources)


@functools.cache
def models():
  """Policy and reference: transformers' and ours."""
  policy, reference = (hf_models.make(hf_models.llama(pad_token_id=0, eos_token_id=1), seed) for seed in (0, 1))
  architecture, ours = hf_models.to_ours(policy)
  model = Transformer(architecture, Execution(unroll=False, kernels='xla'))  # compiles faster
  return policy, reference, model, ours, hf_models.to_ours(reference)[1]


def pairs(rows=3, time=20):
  """Answers of one length in each row (TRL's NLL term is a mean over the batch's tokens), prompts of several."""
  rng = np.random.default_rng(0)

  def side():
    tokens = rng.integers(2, hf_models.VOCAB, (rows, time)).astype(np.int32)
    weights, segments = np.zeros((rows, time), np.float32), np.zeros((rows, time), np.int32)
    for row, prompt in enumerate((4, 6, 9)):
      weights[row, prompt - 1:prompt + 5] = 1  # six targets
      segments[row, :prompt + 6] = 1
    targets = np.roll(tokens, -1, 1)
    positions = np.broadcast_to(np.arange(time, dtype=np.int32), tokens.shape)
    return LanguageModelBatch(tokens, targets, weights, positions, segments)

  return PreferenceBatch(side(), side())


@functools.cache
def ours(name):
  """(loss, metrics, gradient by the names of transformers) of our objective."""
  _, _, model, params, reference = models()
  objective = objective_of(FORMS[name][0], model)

  def mean(params):
    loss = objective(params, Frozen(reference=reference), pairs(), None)
    return loss.total / loss.weight, {k: v / loss.weight for k, v in loss.metrics.items()}

  (loss, metrics), grads = jax.jit(jax.value_and_grad(mean, has_aux=True))(params)
  return float(loss), jax.device_get(metrics), hf.state_dict_from_params(model.config, grads)


@pytest.mark.parametrize('name', [name for name, (_, trl) in FORMS.items() if trl])
def test_trl(name, tmp_path):
  """Loss, gradients and logged rewards of TRL's DPOTrainer on the same weights and pairs."""
  trainer = make_trainer(tmp_path, **FORMS[name][1])
  policy = models()[0]
  want = trl_loss(trainer)
  loss, metrics, grads = ours(name)
  assert abs(loss - want.item()) <= 1e-6 * max(1, abs(want.item()))
  for mine, theirs in (('reward_chosen', 'rewards/chosen'), ('reward_rejected', 'rewards/rejected'),
                       ('reward_margin', 'rewards/margins'), ('accuracy', 'rewards/accuracies')):
    [logged] = trainer._metrics['train'][theirs]
    np.testing.assert_allclose(metrics[mine], logged, rtol=1e-6, atol=2e-6)
  for parameter_name, parameter in policy.named_parameters():
    error = np.linalg.norm(grads[parameter_name] - parameter.grad.numpy()) / np.linalg.norm(parameter.grad.numpy())
    assert error <= 1e-5, f'{parameter_name}: {error}'


def trl_loss(trainer):
  """Of the pairs, by a DPOTrainer; its gradients are left in the policy."""
  policy, batch = models()[0], pairs()
  policy.zero_grad()
  both = lambda field: np.concatenate([getattr(batch.chosen, field), getattr(batch.rejected, field)])
  completion = np.roll(both('weights'), 1, 1)  # TRL marks the tokens that are predicted, we the places that predict
  inputs = dict(input_ids=torch.tensor(both('tokens')).long(), completion_mask=torch.tensor(completion).long(),
                attention_mask=torch.tensor(both('segment_ids')).long())
  loss = trainer._compute_loss(policy, inputs, False)
  loss.backward()
  return loss


def make_trainer(folder, **options):
  """A DPOTrainer around the two tiny models; its data set is never read."""
  import datasets
  import tokenizers
  import transformers
  import trl
  words = {f'w{i}': i for i in range(hf_models.VOCAB)}
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token='w2')), unk_token='w2',
    pad_token='w0', eos_token='w1')
  rows = datasets.Dataset.from_dict({'prompt': ['w3 '], 'chosen': ['w4'], 'rejected': ['w5']})
  args = trl.DPOConfig(output_dir=str(folder), report_to=[], use_cpu=True, bf16=False, disable_dropout=True,
                       gradient_checkpointing=False, **options)
  policy, reference = models()[:2]
  trainer = trl.DPOTrainer(policy, reference, args, train_dataset=rows, processing_class=tokenizer)
  policy.train()
  return trainer


@functools.cache
def log_probs_of_pairs():
  """(chosen, rejected) by the policy, and by the reference."""
  _, _, model, params, reference = models()
  log_probs = jax.jit(functools.partial(sequence_log_probs, model))
  return tuple(tuple(np.asarray(log_probs(tree, side), np.float64) for side in (pairs().chosen, pairs().rejected))
               for tree in (params, reference))


@pytest.mark.parametrize('name', FORMS)
def test_formula(name):
  """Every loss from the sequences' log-probabilities, by its paper's formula in float64."""
  form = FORMS[name][0]
  (pc, pr), (qc, qr) = log_probs_of_pairs()
  sigmoid = lambda x: 1 / (1 + np.exp(-x))
  log_sigmoid = lambda x: -np.log1p(np.exp(-x))
  n = 6.0
  match form:
    case config.DPO(beta, nll_weight, noise):
      m = beta * ((pc - qc) - (pr - qr))
      want = -(1 - noise) * log_sigmoid(m) - noise * log_sigmoid(-m) - nll_weight * pc / n
    case config.IPO(beta):
      want = (((pc - qc) - (pr - qr)) / n - 1 / (2 * beta)) ** 2
    case config.SLiC(beta):
      want = np.maximum(0, 1 - beta * ((pc - qc) - (pr - qr)))
    case config.APOZero(beta):
      want = 1 - sigmoid(beta * (pc - qc)) + sigmoid(beta * (pr - qr))
    case config.APODown(beta):
      want = sigmoid(beta * (pc - qc)) + 1 - sigmoid(beta * ((pc - qc) - (pr - qr)))
    case config.ORPO(beta):
      odds = lambda p: np.exp(p / n) / (1 - np.exp(p / n))
      want = -pc / n - beta * log_sigmoid(np.log(odds(pc) / odds(pr)))
    case config.SimPO(beta, gamma):
      want = -log_sigmoid(beta * (pc - pr) / n - gamma)
  assert abs(ours(name)[0] - want.mean()) <= 2e-6 * max(1, abs(want.mean()))


SOFT = np.float32([0.9, 0.5, 0.2])


def test_soft_labels_weigh_the_two_losses():
  """-p log sigmoid(m) - (1 - p) log sigmoid(-m); label smoothing moves p towards a half; the NLL stays."""
  _, _, model, params, reference = models()
  (pc, pr), (qc, qr) = log_probs_of_pairs()
  form = config.DPO(beta=0.3, nll_weight=0.2, label_smoothing=0.1)
  soft = pairs().replace(soft_labels=SOFT)
  loss = jax.jit(objective_of(form, model))(params, Frozen(reference=reference), soft, None)
  margin = 0.3 * ((pc - qc) - (pr - qr))
  p = 0.9 * SOFT.astype(float) + 0.1 * (1 - SOFT.astype(float))
  want = p * np.log1p(np.exp(-margin)) + (1 - p) * np.log1p(np.exp(margin)) - 0.2 * pc / 6
  np.testing.assert_allclose(loss.total, want.sum(), rtol=2e-6)


def test_trls_robust_loss_is_one_of_soft_labels(tmp_path):
  """(1 - e) / (1 - 2e) of one label's loss and -e / (1 - 2e) of the other's, loss and gradient."""
  wrong = 0.1
  trainer = make_trainer(tmp_path, loss_type='robust', label_smoothing=wrong, beta=0.3)
  policy, _, model, params, reference = models()
  want = trl_loss(trainer)
  soft = pairs().replace(soft_labels=np.full(3, (1 - wrong) / (1 - 2 * wrong), np.float32))
  objective = objective_of(config.DPO(beta=0.3), model)
  loss, grads = jax.jit(jax.value_and_grad(
    lambda params: objective(params, Frozen(reference=reference), soft, None).total / 3))(params)
  assert abs(loss - want.item()) <= 1e-6 * max(1, abs(want.item()))
  ours = hf.state_dict_from_params(model.config, grads)
  for name, parameter in policy.named_parameters():
    error = np.linalg.norm(ours[name] - parameter.grad.numpy()) / np.linalg.norm(parameter.grad.numpy())
    assert error <= 1e-5, f'{name}: {error}'


def test_policy_that_is_the_reference_gives_ln_2():
  _, _, model, params, _ = models()
  loss = jax.jit(objective_of(config.DPO(), model))(params, Frozen(reference=params), pairs(), None)
  assert float(loss.total / loss.weight) == pytest.approx(math.log(2), abs=1e-7)
  assert float(loss.metrics['reward_margin']) == 0


@pytest.mark.parametrize('form', (config.DPO(nll_weight=0.2), pytest.param(config.ORPO(), marks=pytest.mark.slow)))
def test_padding_pairs_do_not_count(form):
  _, _, model, params, reference = models()
  frozen = Frozen(reference=reference)
  batch = pairs()
  padded = jax.tree.map(lambda x: np.concatenate([x, np.zeros_like(x[:2])]), batch)
  objective = jax.jit(objective_of(form, model))
  want, got = objective(params, frozen, batch, None), objective(params, frozen, padded, None)
  assert float(got.weight) == float(want.weight) == 3
  np.testing.assert_allclose(got.total, want.total, rtol=1e-6)


def test_an_answer_that_is_certain_has_a_finite_gradient():
  """Where TRL has NaN: 1 - p is 0 in float32."""
  grad = jax.jit(jax.grad(lambda x: _log1mexp(x).sum()))(jnp.array([0.0, -1e-9, -0.5]))
  np.testing.assert_allclose(grad, [0, 0, -1 / math.expm1(0.5)], rtol=1e-6)


def test_no_dropout():
  _, _, model, params, _ = models()
  dropped = Transformer(dataclasses.replace(model.config, dropout=0.5))
  loss = jax.jit(objective_of(config.DPO(), dropped))(params, Frozen(reference=params), pairs(), jax.random.key(0))
  assert float(loss.metrics['reward_margin']) == 0


@pytest.mark.parametrize('soft_cap', (None, 3.0))
def test_token_log_probs_in_chunks(soft_cap):
  """Values and gradients of log_softmax, with a last chunk that is not full."""
  rng = np.random.default_rng(0)
  x, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 7, 5), (11, 5)))
  targets, g = jnp.asarray(rng.integers(0, 11, (2, 7))), jnp.asarray(rng.normal(size=(2, 7)), jnp.float32)

  def plain(x, w):
    logits = x @ w.T
    logits = logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)
    return jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]

  chunked = functools.partial(token_log_probs, targets_BT=targets, soft_cap=soft_cap, chunk=3)
  want, pullback = jax.vjp(jax.jit(plain), x, w)
  got, our_pullback = jax.vjp(jax.jit(chunked), x, w)
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
  for a, b in zip(our_pullback(g), pullback(g), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_head_gradient_of_many_chunks_is_summed_in_float32():
  """Of bfloat16 features: as exact in 128 chunks as in one."""
  rng = np.random.default_rng(0)
  x, w = jnp.asarray(rng.normal(size=(2, 128, 8)), jnp.bfloat16), jnp.asarray(rng.normal(size=(16, 8)), jnp.bfloat16)
  w, targets = w.astype(jnp.float32), jnp.asarray(rng.integers(0, 16, (2, 128)))
  gradient = lambda x, chunk: jax.jit(jax.grad(lambda w: token_log_probs(x, w, targets, chunk=chunk).sum()))(w)
  want = gradient(x.astype(jnp.float32), 128)
  error = [float(jnp.linalg.norm(gradient(x, chunk) - want) / jnp.linalg.norm(want)) for chunk in (128, 1)]
  assert error[1] < 1.5 * error[0] < 0.01, error


def test_the_loss_of_each_source_of_a_mixture_is_that_of_its_pairs():
  _, _, model, params, reference = models()
  batch, form = pairs(), config.DPO(beta=0.3, nll_weight=0.2)
  frozen = Frozen(reference=reference)
  run = jax.jit(lambda batch, sources: objective_of(form, model, sources)(params, frozen, batch, None),
                static_argnums=1)
  mixed = run(batch.replace(sources=np.array([2, 0, 2], np.int32)), ('a', 'b', 'c'))
  means = as_numbers(mixed.metrics)
  assert [name for name in means if '/' in name] == ['loss/a', 'loss/c']  # no pair is from b
  for name, counts in (('a', [0, 1, 0]), ('c', [1, 0, 1])):
    sides = [side.replace(weights=side.weights * np.array(counts)[:, None]) for side in (batch.chosen, batch.rejected)]
    alone = run(PreferenceBatch(*sides), ())  # pairs without a target do not count
    np.testing.assert_allclose(means[f'loss/{name}'], alone.total / alone.weight, rtol=1e-6)
