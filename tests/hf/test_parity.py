"""Our decoder against `transformers`, in float32: logits, gradients, and a hundred steps of training."""
import functools
import math

import jax
import numpy as np
import optax
import pytest
import torch

from llm_jax import hf
from llm_jax.config.optimizers import AdamW
from llm_jax.config.schedules import Cosine
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives import chunks
from llm_jax.objectives.language_model import LanguageModelObjective
from llm_jax.optim.optimizers import make_optimizer
from llm_jax.optim.schedules import make_schedule
from llm_jax.train.state import TrainState
from llm_jax.train.step import make_train_step
from tests.hf import hf_models

# Both kernel sets; one unrolled, one scanned.
EXECUTIONS = {'cpu': Execution(kernels='cpu', unroll=True), 'xla': Execution(kernels='xla', unroll=False)}


@functools.cache
def pair(case):
  model = hf_models.make(hf_models.CASES[case])
  return model, *hf_models.to_ours(model)


# The first case of every family. What the others add to it shows in their logits; their gradients are slow.
FIRST = list({config.model_type: case for case, config in reversed(hf_models.CASES.items())}.values())
# The kernels in turn, so that both run on half of the families.
RUNS = [pytest.param(case, ('cpu', 'xla')[i % 2], marks=[] if case in FIRST else [pytest.mark.slow])
        for i, case in enumerate(hf_models.CASES)]


def compare(name, got, want):
  error = np.linalg.norm(got - want)
  assert error <= 1e-5 * np.linalg.norm(want), f'{name}: {error}'  # an expert that no token chose has no gradient


@pytest.mark.parametrize('case', [case for case in hf_models.CASES if case not in FIRST])
def test_logits(case):
  torch_model, config, params = pair(case)
  tokens = hf_models.batch().tokens
  got = jax.jit(Transformer(config, EXECUTIONS['xla']).apply)({'params': params}, tokens)
  with torch.no_grad():
    want = torch_model(torch.tensor(np.asarray(tokens)).long()).logits.numpy()
  assert got.dtype == np.float32 and np.abs(want).max() > 0.5
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize('case, kernels', RUNS)
def test_logits_and_gradients(case, kernels):
  """Every tensor of the gradient is compared by the names that files of `transformers` have."""
  torch_model, config, params = pair(case)
  batch, model = hf_models.batch(), Transformer(config, EXECUTIONS[kernels])

  def mean(params):
    logits = model.apply({'params': params}, batch.tokens)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
    return (losses * batch.weights).sum() / batch.weights.sum(), logits

  (got_loss, got_logits), got = jax.jit(jax.value_and_grad(mean, has_aux=True))(params)
  with torch.no_grad():
    want_logits = torch_model(torch.tensor(np.asarray(batch.tokens)).long()).logits.numpy()
  assert got_logits.dtype == np.float32 and np.abs(want_logits).max() > 0.5
  np.testing.assert_allclose(got_logits, want_logits, rtol=0, atol=1e-5)
  np.testing.assert_array_equal(np.argmax(got_logits, -1), want_logits.argmax(-1))

  torch_model.zero_grad()
  want_loss = hf_models.torch_loss(torch_model, batch)
  want_loss.backward()
  assert abs(got_loss - want_loss.item()) <= 1e-6 * want_loss.item()
  got, want = hf.state_dict_from_params(config, got), hf_models.gradient_in_files(torch_model)
  learnt = {name for name in want if not name.endswith('e_score_correction_bias')}
  assert got.keys() == want.keys() and sum(np.any(want[name]) for name in learnt) > 0.8 * len(learnt)
  for name in learnt:
    compare(name, got[name], want[name])


@pytest.mark.parametrize('case, kernels', (('gpt2', 'cpu'), ('llama gqa', 'xla')))
def test_objective(case, kernels, monkeypatch):
  """What training computes: the loss and its gradient in five chunks."""
  torch_model, config, params = pair(case)
  batch = hf_models.batch()
  monkeypatch.setitem(chunks.CHUNK_BYTES, kernels, 4 * batch.tokens.shape[0] * hf_models.VOCAB * 8)
  objective = LanguageModelObjective(Transformer(config, EXECUTIONS[kernels]))

  def mean(params):
    loss = objective(params, None, batch, None)
    return loss.total / loss.weight

  got_loss, got = jax.jit(jax.value_and_grad(mean))(params)
  torch_model.zero_grad()
  want_loss = hf_models.torch_loss(torch_model, batch)
  want_loss.backward()
  assert abs(got_loss - want_loss.item()) <= 1e-6 * want_loss.item()
  got, want = hf.state_dict_from_params(config, got), hf_models.gradient_in_files(torch_model)
  for name in want:
    compare(name, got[name], want[name])


@pytest.mark.parametrize('case', (pytest.param('gpt2', marks=pytest.mark.slow), 'llama gqa'))
def test_hundred_training_steps(case):
  """The whole step (loss, gradient, clipping, AdamW with its decay mask, schedule) beside a plain loop in torch."""
  steps, warmup, peak, final, clip = 100, 10, 3e-3, 0.1, 1.0
  # A seed whose weights do not amplify rounding: with some, two right programs end 2e-5 apart in a tensor.
  model = hf_models.make(hf_models.CASES[case], seed=4)
  config, params = hf_models.to_ours(model)
  batches = [hf_models.batch(seed, rows=2, time=16) for seed in range(4)]

  decayed = [p for p in model.parameters() if p.ndim > 1]
  others = [p for p in model.parameters() if p.ndim == 1]
  adamw = torch.optim.AdamW([{'params': decayed, 'weight_decay': 0.1}, {'params': others, 'weight_decay': 0.0}],
                            lr=1.0, betas=(0.9, 0.95), eps=1e-8)
  want_losses, want_norms = [], []
  for step in range(steps):
    progress = max(step - warmup, 0) / (steps - warmup)
    rate = peak * min(1, (step + 1) / (warmup + 1)) * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))
    for group in adamw.param_groups:
      group['lr'] = rate
    adamw.zero_grad()
    loss = hf_models.torch_loss(model, batches[step % len(batches)])
    loss.backward()
    want_norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), clip).item())
    adamw.step()
    want_losses.append(loss.item())

  optimizer = make_optimizer(AdamW(weight_decay=0.1), params)
  train_step = jax.jit(make_train_step(
    LanguageModelObjective(Transformer(config, Execution(kernels='cpu'))), optimizer,
    make_schedule(Cosine(peak, warmup, final), steps), clip_norm=clip), donate_argnums=0)
  state, got = TrainState.create(jax.tree.map(jax.numpy.array, params), optimizer, ema=False), []
  for step in range(steps):
    state, metrics = train_step(state, None, batches[step % len(batches)])
    got.append((float(metrics['loss']), float(metrics['grad_norm'])))

  assert max(want_norms) > clip > min(want_norms) and want_losses[-1] < 0.5 * want_losses[0]
  np.testing.assert_allclose([loss for loss, _ in got], want_losses, rtol=1e-5)
  np.testing.assert_allclose([norm for _, norm in got], want_norms, rtol=1e-4)
  got = hf.state_dict_from_params(config, state.params)
  for name, parameter in model.named_parameters():
    want = parameter.detach().numpy()
    if name.endswith('c_attn.bias'):
      # Softmax does not see the keys' bias: its gradient is rounding noise, which Adam scales up to whole steps.
      got[name], want = (np.delete(x, np.s_[config.d_model:2 * config.d_model]) for x in (got[name], want))
    error = np.linalg.norm(got[name] - want) / np.linalg.norm(want)
    assert error <= 1e-5, f'{name}: {error}'
