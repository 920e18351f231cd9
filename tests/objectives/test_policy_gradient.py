"""Policy gradients against TRL's trainers, over microbatches and devices, and what must hold of any of them."""
import dataclasses
import functools

import jax
import numpy as np
import pytest
import torch

from llm_jax import hf
from llm_jax.batch import LanguageModelBatch, RolloutBatch
from llm_jax.config.errors import ConfigError
from llm_jax.config.policy_gradients import (
  RATIOS,
  Clip,
  ClipWeight,
  KLInLoss,
  KLInReward,
  PolicyGradient,
  cispo,
  dapo,
  dr_grpo,
  grpo,
  gspo,
  reinforce,
  rloo,
)
from llm_jax.config.run import Mesh
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.frozen import Frozen
from llm_jax.objectives.log_probs import answer_log_probs, log_probs_and_entropies
from llm_jax.objectives.policy_gradient import PolicyGradientObjective, count_answers, sums_of_answers
from llm_jax.rollout.buffer import token_weights
from llm_jax.rollout.packing import pack
from llm_jax.sharding.mesh import make_mesh
from llm_jax.sharding.rules import batch_sharding
from llm_jax.train.step import accumulate
from tests.hf import hf_models

ROWS, TIME, PROMPT, ANSWER = 8, 20, 7, 12  # padded lengths, as TRL has them
TEMPERATURE = 0.7
FORMS = {  # ours, and TRL's options
  'grpo': (grpo(), dict(loss_type='grpo')),
  'grpo with kl': (grpo(kl=0.04), dict(loss_type='grpo', beta=0.04, use_bias_correction_kl=False)),
  'dr_grpo': (dr_grpo(), dict(loss_type='dr_grpo')),
  'dapo': (dapo(), dict(loss_type='dapo', epsilon_high=0.28)),
  'dapo with corrected kl': (
    dataclasses.replace(dapo(), kl=KLInLoss(0.1)), dict(loss_type='dapo', epsilon_high=0.28, beta=0.1)),
  'gspo': (
    gspo(), dict(loss_type='grpo', importance_sampling_level='sequence', epsilon=3e-4, epsilon_high=4e-4)),
  'cispo': (cispo(1.1), dict(loss_type='cispo', epsilon_high=1.1)),
  'two-sided': (
    PolicyGradient(aggregation='sequences', clip=Clip(0.2, 0.2, most=1.3)), dict(loss_type='grpo', delta=1.3)),
}
QUICK = ('grpo with kl', 'dapo')  # the others are slow tests


@functools.cache
def models():
  """Policy: transformers' and ours."""
  policy = hf_models.make(hf_models.llama(pad_token_id=0, eos_token_id=1), 0)
  architecture, ours = hf_models.to_ours(policy)
  return policy, Transformer(architecture, Execution(unroll=False, kernels='xla')), ours


@functools.cache
def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Ids of prompts and answers of several lengths, and these lengths."""
  rng = np.random.default_rng(0)
  ids = rng.integers(2, hf_models.VOCAB, (ROWS, TIME + 1)).astype(np.int32)
  return ids, rng.integers(2, PROMPT + 1, ROWS), rng.integers(1, ANSWER + 1, ROWS)


def batch(config: PolicyGradient, spread: float = 0.3) -> RolloutBatch:
  """Answers of a policy that was a little another one, with advantages of both signs.   spread: of the log-ratios."""
  ids, prompts, answers = rows()
  places = np.broadcast_to(np.arange(TIME, dtype=np.int32), (ROWS, TIME))
  is_answer = (places >= prompts[:, None] - 1) & (places < (prompts + answers)[:, None] - 1)
  segment_ids = (places < (prompts + answers)[:, None] - 1).astype(np.int32)
  weights = token_weights(is_answer, config.aggregation, ANSWER)
  text = LanguageModelBatch(ids[:, :-1], ids[:, 1:], weights, places, segment_ids)
  rng = np.random.default_rng(1)
  now = log_probs(text, TEMPERATURE)
  noise = np.where(is_answer, rng.normal(0, spread, (2, ROWS, TIME)), 0).astype(np.float32)
  advantages = np.where(is_answer, rng.normal(size=(ROWS, 1)), 0).astype(np.float32)
  return RolloutBatch(text, advantages, now + noise[0], now + noise[1] if config.has_reference else None)


def log_probs(text: LanguageModelBatch, temperature: float) -> np.ndarray:
  _, model, params = models()
  return np.asarray(jax.jit(lambda text: answer_log_probs(model, params, text, temperature))(text))


def ours(config: PolicyGradient, rows: RolloutBatch, microbatches: int = 1, temperature: float = TEMPERATURE):
  """(gradient sums, Loss) as the training step has them."""
  _, model, params = models()
  objective = PolicyGradientObjective(model, config, temperature=temperature)
  return jax.jit(lambda params, rows: accumulate(
    objective, params, Frozen(), rows, jax.random.key(0), microbatches))(params, rows)


@pytest.mark.parametrize('ratio', [pytest.param(ratio, marks=() if ratio == 'sequence_mean' else pytest.mark.slow)
                                   for ratio in RATIOS])
def test_answers_that_share_rows_are_as_in_rows_of_their_own(ratio):
  """Loss, gradients and metrics."""
  config = PolicyGradient(ratio=ratio, aggregation='sequences', kl=KLInLoss(0.1))
  apart = batch(config)
  _, prompts, answers = rows()
  layout = pack(np.arange(ROWS), prompts + answers - 1, seq_len=2 * TIME)
  assert len(layout.answers) < ROWS / 2
  gather = lambda array: layout.gather(np.asarray(array))
  text = LanguageModelBatch(gather(apart.text.tokens), gather(apart.text.targets), gather(apart.text.weights),
                            layout.places, layout.segment_ids)
  together = RolloutBatch(text, *map(gather, (apart.advantages, apart.old_log_probs, apart.reference_log_probs)))
  (gradient, loss), (want_gradient, want) = ours(config, together), ours(config, apart)
  assert float(loss.weight) == float(want.weight) == ROWS
  assert float(loss.total) / ROWS == pytest.approx(float(want.total) / ROWS, abs=1e-6)
  for found, expected in zip(jax.tree.leaves(loss.metrics), jax.tree.leaves(want.metrics), strict=True):
    assert float(found) == pytest.approx(float(expected), rel=1e-5, abs=1e-5)
  for found, expected in zip(jax.tree.leaves(gradient), jax.tree.leaves(want_gradient), strict=True):
    np.testing.assert_allclose(found, expected, atol=5e-6 * max(1, np.abs(expected).max()))


def test_log_probabilities_and_entropies_of_one_pass():
  """As torch has them, with a soft cap of the logits."""
  rng = np.random.default_rng(0)
  x, w = rng.normal(size=(2, 7, 8)).astype(np.float32), rng.normal(size=(11, 8)).astype(np.float32)
  targets = rng.integers(0, 11, (2, 7)).astype(np.int32)
  log_probs, entropies = jax.jit(functools.partial(log_probs_and_entropies, soft_cap=3.0))(x, w, targets)
  want = torch.distributions.Categorical(logits=3 * torch.tanh(torch.tensor(x) @ torch.tensor(w).T / 3))
  np.testing.assert_allclose(entropies, want.entropy().numpy(), rtol=1e-5)
  np.testing.assert_allclose(log_probs, want.log_prob(torch.tensor(targets)).numpy(), rtol=1e-5)


def test_answers_are_counted_by_segments():
  """One of two runs, as a call of a function leaves it, is one answer."""
  is_answer = np.array([[0, 1, 1, 0, 1, 0, 1, 0], [0, 0, 1, 0, 0, 0, 0, 0]], bool)
  segment_ids = np.array([[1, 1, 1, 1, 1, 2, 2, 0], [1, 1, 1, 0, 0, 0, 0, 0]])
  assert float(count_answers(is_answer, segment_ids)) == 3
  sums = sums_of_answers(is_answer.astype(np.float32), segment_ids)
  np.testing.assert_array_equal(sums, [[3, 3, 3, 3, 3, 1, 1, 0], [1, 1, 1, 0, 0, 0, 0, 0]])


# ---------------------------------------------------------------------------------------------- TRL
def padded(found: np.ndarray, starts: np.ndarray, length: int) -> torch.Tensor:
  """[rows, time] to TRL's completions: `length` values of each row from its own start on."""
  return torch.tensor(np.stack([np.pad(row, (0, length))[start:start + length]
                                for row, start in zip(found, starts, strict=True)]))


def inputs_of(rows_given: RolloutBatch) -> dict[str, torch.Tensor]:
  """What TRL's trainers get: prompts padded on the left, answers on the right."""
  ids, prompts, answers = rows()
  prompt_ids, prompt_mask = np.zeros((ROWS, PROMPT), np.int64), np.zeros((ROWS, PROMPT), np.int64)
  for row, (each, length) in enumerate(zip(ids, prompts, strict=True)):
    prompt_ids[row, PROMPT - length:] = each[:length]
    prompt_mask[row, PROMPT - length:] = 1
  mask = torch.tensor(np.arange(ANSWER) < answers[:, None]).long()
  inputs = {
    'prompt_ids': torch.tensor(prompt_ids), 'prompt_mask': torch.tensor(prompt_mask),
    'completion_ids': padded(ids, prompts, ANSWER).long() * mask, 'completion_mask': mask,
    'advantages': torch.tensor(rows_given.advantages.sum(1) / (rows_given.advantages != 0).sum(1)),
    'old_per_token_logps': padded(rows_given.old_log_probs, prompts - 1, ANSWER),
    'num_items_in_batch': mask.sum(),
  }
  if rows_given.reference_log_probs is not None:
    inputs['ref_per_token_logps'] = padded(rows_given.reference_log_probs, prompts - 1, ANSWER)
  return inputs


def make_trainer(kind: str, folder, **options):
  """A trainer of TRL around the tiny policy; its data and its reward are never asked."""
  import datasets
  import tokenizers
  import transformers
  import trl
  words = {f'w{i}': i for i in range(hf_models.VOCAB)}
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token='w2')), unk_token='w2',
    pad_token='w0', eos_token='w1')
  beta = options.pop('beta', 0.0)
  args = getattr(trl, f'{kind}Config')(
    output_dir=str(folder), report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False, beta=0.0,
    per_device_train_batch_size=ROWS, num_generations=2, max_completion_length=ANSWER, temperature=TEMPERATURE,
    disable_dropout=True, **options)
  policy = models()[0]
  trainer = getattr(trl, f'{kind}Trainer')(
    policy, lambda completions, **_: [0.0] * len(completions), args,
    train_dataset=datasets.Dataset.from_dict({'prompt': ['w3', 'w4'] * ROWS}), processing_class=tokenizer)
  trainer.beta = beta
  trainer.current_gradient_accumulation_steps = 1
  policy.train()
  return trainer


def check_like_trl(trainer, inputs, config: PolicyGradient, given: RolloutBatch, rounding: float = 1.0) -> None:
  """rounding: how many times that of one token."""
  policy, model, _ = models()
  policy.zero_grad()
  want = trainer._compute_loss(policy, inputs)
  want.backward()
  grads, loss = ours(config, given)
  assert float(loss.total / loss.weight) == pytest.approx(want.item(), abs=1e-6 * rounding)
  named = hf.state_dict_from_params(model.config, jax.tree.map(lambda g: g / loss.weight, grads))
  for name, parameter in policy.named_parameters():
    expected = parameter.grad.numpy()
    error = np.abs(named[name] - expected).max() / max(np.abs(expected).max(), 1e-3)
    assert error <= 5e-6 * rounding, f'{name}: {error}'


@pytest.mark.parametrize('form', [
  form if form in QUICK else pytest.param(form, marks=pytest.mark.slow) for form in FORMS])
def test_grpo_of_trl(form, tmp_path):
  config, options = FORMS[form]
  given = batch(config)
  check_like_trl(make_trainer('GRPO', tmp_path, **options), inputs_of(given), config, given)


def test_rloo_of_trl(tmp_path):
  given = batch(rloo(), spread=0.05)  # for a ratio of whole answers
  inputs = inputs_of(given)
  inputs['old_logps'] = (inputs['old_per_token_logps'] * inputs['completion_mask']).sum(1)
  check_like_trl(make_trainer('RLOO', tmp_path), inputs, rloo(), given, rounding=ANSWER)  # of sums over answers


# ---------------------------------------------------------------------------------------------- identities
def check_same_gradient(grads, expected) -> None:
  """To rounding, which that of a ratio of whole answers has several times."""
  for mine, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=5e-6 * np.abs(theirs).max())


def slow(*values):
  return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.mark.parametrize('config', [grpo(kl=0.1), *slow(dr_grpo(), dapo(), rloo())], ids=repr)
def test_microbatches_change_nothing(config):
  """However long the answers of each are."""
  given = batch(config, spread=0.05)
  whole_grads, whole = ours(config, given)
  for microbatches in (2, 4):
    grads, loss = ours(config, given, microbatches)
    assert float(loss.total) == pytest.approx(float(whole.total), rel=1e-6)
    assert float(loss.weight) == pytest.approx(float(whole.weight), rel=1e-6)
    assert float(loss.metrics['ratio_max'].value) == pytest.approx(float(whole.metrics['ratio_max'].value), rel=1e-5)
    check_same_gradient(grads, whole_grads)


def test_devices_change_nothing():
  config = grpo(kl=0.1)
  given = batch(config)
  whole_grads, whole = ours(config, given)
  mesh = make_mesh(Mesh(data=4, fsdp=2))
  with jax.set_mesh(mesh):
    grads, loss = ours(config, jax.tree.map(lambda x: jax.device_put(x, batch_sharding(mesh)), given))
    assert float(loss.total) == pytest.approx(float(whole.total), rel=1e-6)
    check_same_gradient(grads, whole_grads)


@pytest.mark.parametrize('config', [rloo(), *slow(grpo(), gspo(), cispo(), reinforce())], ids=repr)
def test_without_advantage_nothing_is_learnt(config):
  given = dataclasses.replace(batch(config), advantages=np.zeros((ROWS, TIME), np.float32))
  grads, loss = ours(config, given)
  assert float(loss.total) == 0
  assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(grads))


def test_the_ratio_is_1_where_nothing_has_been_learnt_yet():
  """At a temperature other than 1, and with dropout configured, which must not be active."""
  given = batch(grpo())
  given = dataclasses.replace(given, old_log_probs=log_probs(given.text, TEMPERATURE))
  _, model, params = models()
  dropping = Transformer(dataclasses.replace(model.config, dropout=0.3), model.execution)
  objective = PolicyGradientObjective(dropping, grpo(), temperature=TEMPERATURE)
  loss = jax.jit(lambda given: objective(params, Frozen(), given, jax.random.key(0)))(given)
  ratio = loss.metrics['ratio']
  assert float(ratio.total / ratio.weight) == pytest.approx(1, abs=1e-5)
  assert float(loss.metrics['ratio_max'].value) == pytest.approx(1, abs=1e-5)
  assert float(loss.metrics['clipped_low'].total) == float(loss.metrics['clipped_high'].total) == 0


@pytest.mark.parametrize('config', [grpo(kl=0.1), *slow(dr_grpo(), dapo(), rloo(), gspo(), cispo(), reinforce())],
                         ids=repr)
def test_what_learns_once_needs_no_old_log_probabilities(config):
  """Loss, gradients and metrics are those with the policy's own, from which they differ by rounding."""
  given = batch(config)
  own = dataclasses.replace(given, old_log_probs=log_probs(given.text, TEMPERATURE))
  grads, loss = ours(config, dataclasses.replace(given, old_log_probs=None))
  want_grads, want = ours(config, own)
  assert float(loss.total) == pytest.approx(float(want.total), abs=1e-5 * float(loss.weight))
  largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(want_grads))
  assert largest > 0.01
  for got, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(want_grads), strict=True):
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * largest)
  assert loss.metrics.keys() == want.metrics.keys() and float(loss.metrics['ratio_max'].value) == 1


def test_a_penalty_alone_pulls_back_to_the_reference():
  config = grpo(kl=1.0)
  given = dataclasses.replace(batch(config), advantages=np.zeros((ROWS, TIME), np.float32))
  grads, loss = ours(config, given)
  _, _, params = models()
  moved = jax.tree.map(lambda p, g: p - 0.05 * g / loss.weight, params, grads)
  objective = PolicyGradientObjective(models()[1], config, temperature=TEMPERATURE)
  after = jax.jit(lambda params: objective(params, Frozen(), given, None))(moved)
  assert float(after.metrics['kl'].total) < float(loss.metrics['kl'].total)


@pytest.mark.parametrize('make, message', [
  (lambda: PolicyGradient(advantage='mean'), 'advantage = .mean.: use one of'),
  (lambda: PolicyGradient(ratio='word'), 'ratio = .word.'),
  (lambda: PolicyGradient(aggregation='mean'), 'aggregation = .mean.'),
  (lambda: Clip(low=0.0), 'low = 0.0'),
  (lambda: Clip(most=1.0), 'most = 1.0: use more than 1.2'),
  (lambda: ClipWeight(0.0), 'most = 0.0'),
  (lambda: KLInLoss(0.1, 'k2'), 'estimator = .k2.'),
  (lambda: KLInReward(0.0), 'weight = 0.0'),
])
def test_refused(make, message):
  with pytest.raises(ConfigError, match=message):
    make()
