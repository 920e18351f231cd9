"""KTO against TRL's trainer, and over microbatches and devices."""
import functools

import jax
import numpy as np
import pytest
import torch

from llm_jax import hf
from llm_jax.batch import LanguageModelBatch, RatedBatch
from llm_jax.config.errors import ConfigError
from llm_jax.config.preferences import KTO
from llm_jax.config.run import Mesh
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.frozen import Frozen
from llm_jax.objectives.kto import KTOObjective
from llm_jax.sharding.mesh import make_mesh
from llm_jax.sharding.rules import batch_sharding
from llm_jax.train.step import accumulate
from tests.hf import hf_models

ROWS, TIME = 8, 20
IS_DESIRABLE = [1, 0, 0, 1, 1, 0, 1, 0]
CONFIGS = {
  'plain': KTO(beta=0.3),
  'weighted': KTO(beta=0.5, desirable_weight=1.5, undesirable_weight=0.75),
}


@functools.cache
def models():
  """Policy and reference: transformers' and ours."""
  policy, reference = (hf_models.make(hf_models.llama(pad_token_id=0, eos_token_id=1), seed) for seed in (0, 1))
  architecture, ours = hf_models.to_ours(policy)
  model = Transformer(architecture, Execution(unroll=False, kernels='xla'))  # compiles faster
  return policy, reference, model, ours, hf_models.to_ours(reference)[1]


def side(seed: int) -> LanguageModelBatch:
  """Prompts and answers of several lengths."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(2, hf_models.VOCAB, (ROWS, TIME)).astype(np.int32)
  weights = np.zeros((ROWS, TIME), np.float32)
  segment_ids = np.zeros((ROWS, TIME), np.int32)
  for row in range(ROWS):
    prompt, answer = rng.integers(2, 9), rng.integers(2, 10)
    weights[row, prompt - 1:prompt + answer - 1] = 1
    segment_ids[row, :prompt + answer] = 1
  positions = np.broadcast_to(np.arange(TIME, dtype=np.int32), tokens.shape)
  return LanguageModelBatch(tokens, np.roll(tokens, -1, 1), weights, positions, segment_ids)


def batch() -> RatedBatch:
  return RatedBatch(side(0), side(1), np.array(IS_DESIRABLE, np.int32))


def ours(name: str, rows: RatedBatch, microbatches: int = 1):
  """(gradient sums, Loss) as the training step has them."""
  _, _, model, params, reference = models()
  objective = KTOObjective(model, CONFIGS[name])
  frozen = Frozen(reference=reference)
  step = jax.jit(lambda params, rows: accumulate(objective, params, frozen, rows, jax.random.key(0), microbatches))
  return step(params, rows)


@pytest.mark.parametrize('name', CONFIGS)
def test_trl(name, tmp_path):
  """Loss, gradients, rewards and KL of TRL's KTOTrainer on the same weights and answers."""
  trainer = make_trainer(tmp_path, CONFIGS[name])
  policy, rows = models()[0], batch()
  policy.zero_grad()
  inputs = {'label': torch.tensor(IS_DESIRABLE, dtype=torch.bool)}
  for prefix, half in (('', rows.answer), ('KL_', rows.mismatched)):
    inputs[f'{prefix}input_ids'] = torch.tensor(half.tokens).long()
    inputs[f'{prefix}attention_mask'] = torch.tensor(half.segment_ids).long()
    # TRL marks the tokens that are predicted, we the places that predict.
    inputs[f'{prefix}completion_mask'] = torch.tensor(np.roll(half.weights, 1, 1)).long()
  want = trainer._compute_loss(policy, inputs, False)
  want.backward()

  grads, loss = ours(name, rows)
  assert float(loss.total / loss.weight) == pytest.approx(want.item(), rel=1e-6)
  [kl] = trainer._metrics['train']['kl']
  assert float(loss.metrics['kl'] / loss.weight) == pytest.approx(kl, rel=1e-5, abs=1e-6)
  for mine, theirs in (('reward_desirable', 'rewards/chosen'), ('reward_undesirable', 'rewards/rejected')):
    mean = loss.metrics[mine]
    [logged] = trainer._metrics['train'][theirs]
    assert float(mean.total / mean.weight) == pytest.approx(logged, rel=1e-5, abs=2e-6)
  named = hf.state_dict_from_params(models()[2].config, jax.tree.map(lambda g: g / loss.weight, grads))
  for parameter_name, parameter in policy.named_parameters():
    expected = parameter.grad.numpy()
    error = np.linalg.norm(named[parameter_name] - expected) / np.linalg.norm(expected)
    assert error <= 1e-5, f'{parameter_name}: {error}'


def make_trainer(folder, config: KTO):
  """A KTOTrainer around the two tiny models; its data set is never read."""
  import datasets
  import tokenizers
  import transformers
  import trl
  words = {f'w{i}': i for i in range(hf_models.VOCAB)}
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token='w2')), unk_token='w2',
    pad_token='w0', eos_token='w1')
  rows = datasets.Dataset.from_dict({'prompt': ['w3 ', 'w6 '], 'completion': ['w4', 'w5'], 'label': [True, False]})
  args = trl.KTOConfig(output_dir=str(folder), report_to=[], use_cpu=True, bf16=False, disable_dropout=True,
                       gradient_checkpointing=False, per_device_train_batch_size=2, beta=config.beta,
                       desirable_weight=config.desirable_weight, undesirable_weight=config.undesirable_weight)
  policy, reference = models()[:2]
  trainer = trl.KTOTrainer(policy, reference, args, train_dataset=rows, processing_class=tokenizer)
  policy.train()
  return trainer


@pytest.mark.parametrize('microbatches', [2, pytest.param(4, marks=pytest.mark.slow)])
def test_microbatches_share_one_reference_point(microbatches):
  """Each piece alone would have another KL."""
  whole_grads, whole = ours('plain', batch())
  grads, loss = ours('plain', batch(), microbatches)
  assert float(loss.total) == pytest.approx(float(whole.total), rel=1e-6)
  assert float(loss.metrics['kl']) == pytest.approx(float(whole.metrics['kl']), rel=1e-5)
  assert float(whole.metrics['kl']) > 0  # else there is nothing to share
  for got, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(whole_grads), strict=True):
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_devices_share_one_reference_point():
  whole_grads, whole = ours('plain', batch())
  mesh = make_mesh(Mesh(data=4, fsdp=2))
  with jax.set_mesh(mesh):
    sharding = batch_sharding(mesh)
    rows = jax.tree.map(
      lambda x: jax.device_put(x, jax.NamedSharding(mesh, jax.P(*sharding.spec[:np.ndim(x)]))), batch())
    grads, loss = ours('plain', rows)
    assert float(loss.total) == pytest.approx(float(whole.total), rel=1e-6)
    for got, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(whole_grads), strict=True):
      np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_padding_does_not_count():
  rows = batch()
  empty = jax.tree.map(np.zeros_like, rows)
  padded = jax.tree.map(lambda a, b: np.concatenate([a, b]), rows, empty)
  _, loss = ours('plain', padded)
  _, whole = ours('plain', rows)
  assert float(loss.weight) == float(whole.weight) == ROWS
  assert float(loss.total) == pytest.approx(float(whole.total), rel=1e-6)


@pytest.mark.parametrize('fields, message', [
  ({'beta': 0.0}, 'beta = 0.0: use a number above 0'), ({'desirable_weight': -1.0}, 'desirable_weight = -1.0'),
])
def test_refused(fields, message):
  with pytest.raises(ConfigError, match=message):
    KTO(**fields)
