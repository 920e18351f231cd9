"""Online DPO: which two answers are compared, and its loss and gradients against TRL's `OnlineDPOTrainer`."""
import collections
import dataclasses
import functools
import types

import jax
import numpy as np
import pytest
import torch

from llm_jax.config.errors import ConfigError
from llm_jax.config.preferences import DPO, IPO, SimPO
from llm_jax.config.rewards import Regex
from llm_jax.config.rollout import Rollout
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.frozen import Frozen
from llm_jax.objectives.preference import DPOObjective
from llm_jax.rollout.pair_source import PairSource, pairs_of
from llm_jax.train.step import accumulate
from tests.hf import hf_models
from tests.rollout.test_source import ROLLOUT, make_source, make_stage, same, take

PAIRS = dataclasses.replace(ROLLOUT, temperature=1.0, answers=2)


def make(objective=DPO(), rollout: Rollout = PAIRS, **fields) -> PairSource:  # noqa: B008  # frozen
  return make_source(make_stage(objective, rollout, **fields), kind=PairSource)


class Numbers:
  """Rewards that differ for every answer."""
  names = ('numbers',)

  def score(self, answers, by_model):
    return np.array([[hash((answer.prompt.ids, answer.ids)) % 9973 for answer in answers]], float)

  def weighted(self, scores):
    return scores[0]


# ---------------------------------------------------------------------------------------------- which two
def test_the_best_and_the_worst():
  """The first of equal ones, as TRL has it of two."""
  rewards = np.array([[0.2, 0.9, -1.0, 0.9], [0.0, 1.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5]])
  numbers, gaps = pairs_of(rewards)
  np.testing.assert_array_equal(numbers, [[1, 2], [5, 4], [8, 11]])
  np.testing.assert_allclose(gaps, [1.9, 1.0, 0.0])
  two = np.random.default_rng(0).integers(0, 3, (50, 2)).astype(float)
  chosen, _ = pairs_of(two)
  np.testing.assert_array_equal(chosen[:, 0] - 2 * np.arange(50), np.where(two[:, 0] >= two[:, 1], 0, 1))


def test_pairs_hold_what_was_sampled():
  """Both answers of one prompt side by side, the better one chosen, and all of their tokens are targets."""
  source = make(rollout=dataclasses.replace(PAIRS, answers=4))
  [batch, *_] = take(source, 2)
  numbers, buffer = source.numbers(), source._buffer
  assert len(buffer.ids) == 2 * 16 and numbers.keys() == {'tokens', 'step_tokens', 'padding'}
  text = lambda row: bytes(row[row < 256].astype(np.uint8).tolist())
  for k in range(8):
    unit = buffer.order[0, k]
    chosen, rejected = buffer.ids[2 * unit], buffer.ids[2 * unit + 1]
    length = buffer.prompt_lengths[2 * unit]
    np.testing.assert_array_equal(chosen[:length], rejected[:length])
    np.testing.assert_array_equal(batch.chosen.tokens[k], chosen[:batch.chosen.tokens.shape[1]])
    targets = batch.rejected.targets[k][batch.rejected.weights[k] > 0]
    answer = rejected[length:buffer.lengths[2 * unit + 1]]
    is_preferred = bool(buffer.advantages[2 * unit].any())
    np.testing.assert_array_equal(targets, answer if is_preferred else [])
    assert text(chosen[:length]).endswith(b'>')


def test_pairs_without_preference_have_no_weight():
  source = make(rollout=dataclasses.replace(PAIRS, rewards=(Regex('^'),)))
  [batch, *_] = take(source, 1)
  assert not batch.chosen.weights.any() and not batch.rejected.weights.any()
  assert source.numbers()['pairs_alike'] == 1 and source.numbers()['reward'] == 1


@pytest.mark.parametrize('done', [1, 3, 4])
def test_a_source_goes_on_bitwise(done):
  source = make()
  take(source, done)
  position, arrays = source.position(), source.arrays()
  assert bool(arrays) == (done % 4 != 0)
  resumed = make()
  resumed.restore(position, {name: np.asarray(array) for name, array in arrays.items()})
  assert same(take(resumed, 4), take(source, 4))


def test_every_shape_is_foreseen():
  source = make()
  shapes = {shape for shape, _ in source.shapes()}
  for batch in take(source, 4):
    assert batch.chosen.tokens.shape in shapes
  abstract = next(batch for shape, batch in source.shapes() if shape == batch.chosen.tokens.shape)
  assert jax.tree.structure(abstract) == jax.tree.structure(take(source, 1)[0])


# ---------------------------------------------------------------------------------------------- TRL
@functools.cache
def models():
  """Policy and reference: transformers' and ours."""
  both = [hf_models.make(hf_models.llama(vocab_size=257), seed) for seed in (0, 1)]
  converted = [hf_models.to_ours(each) for each in both]
  return both, Transformer(converted[0][0], Execution(unroll=False, kernels='xla')), [params for _, params in converted]


def test_loss_and_gradients_are_those_of_trl():
  """On the same answers of several lengths with the same rewards; TRL's own step, without its sampling."""
  source = make(DPO(beta=0.3), dataclasses.replace(PAIRS, minibatches=1))
  source._rewards = Numbers()
  [batch] = take(source, 1)
  (policy, reference), model, (ours, frozen) = models()
  objective = DPOObjective(model, DPO(beta=0.3))
  gradient, loss = jax.jit(lambda params, rows: accumulate(
    objective, params, Frozen(reference=frozen), rows, jax.random.key(0), 2))(ours, batch)
  assert float(loss.weight) == 8

  want = trl_loss(policy, reference, source, 0.3)
  assert float(loss.total / loss.weight) == pytest.approx(want.item(), abs=1e-6)
  policy.zero_grad()
  want.backward()
  with torch.no_grad():
    for parameter in policy.parameters():
      parameter.copy_(parameter.grad)
  _, expected = hf_models.to_ours(policy)
  models.cache_clear()  # its weights are gradients now
  for found, wanted in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(np.asarray(found) / 8, wanted, atol=5e-6 * max(1.0, np.abs(wanted).max()))


def trl_loss(policy, reference, source: PairSource, beta: float) -> torch.Tensor:
  """What TRL's step computes of the answers in the buffer. Rewards are 1 for the chosen and 0 for the rejected ones,
  which stand in either order."""
  from trl.experimental.online_dpo import OnlineDPOTrainer
  buffer = source._buffer
  units = buffer.order[0]
  flipped = units % 2 == 0
  first, second = np.where(flipped, 2 * units + 1, 2 * units), np.where(flipped, 2 * units, 2 * units + 1)
  rows = np.concatenate([first, second])
  prompt, answer = buffer.prompt_lengths[rows].max(), (buffer.lengths - buffer.prompt_lengths)[rows].max()
  prompt_ids, completion_ids = torch.zeros(len(rows), prompt).long(), torch.zeros(len(rows), answer).long()
  prompt_mask, completion_mask = torch.zeros_like(prompt_ids), torch.zeros_like(completion_ids)
  for i, row in enumerate(rows):
    begin, end = buffer.prompt_lengths[row], buffer.lengths[row]
    prompt_ids[i, prompt - begin:] = torch.tensor(buffer.ids[row, :begin])
    prompt_mask[i, prompt - begin:] = 1
    completion_ids[i, :end - begin] = torch.tensor(buffer.ids[row, begin:end])
    completion_mask[i, :end - begin] = 1
  rewards = torch.tensor(rows % 2 == 0).float()
  stepped: list[torch.Tensor] = []
  trainer = object.__new__(OnlineDPOTrainer)
  trainer.__dict__ |= dict(
    args=types.SimpleNamespace(use_vllm=False, missing_eos_penalty=None, loss_type='sigmoid', n_gpu=1, optim='adamw',
                               torch_empty_cache_steps=None, gradient_accumulation_steps=1),
    ref_model=reference, eos_token_ids=[256], max_length=512, reward_funcs=[None], stats=collections.defaultdict(list),
    processing_class=types.SimpleNamespace(batch_decode=lambda ids, skip_special_tokens: [''] * len(ids)),
    _generate=lambda *_: (prompt_ids, prompt_mask, completion_ids, completion_mask, None), _beta=beta,
    _calculate_rewards_from_functions=lambda **_: rewards,
    accelerator=types.SimpleNamespace(gather_for_metrics=lambda x: x, backward=lambda loss, **_: stepped.append(loss)),
    state=types.SimpleNamespace(global_step=1, epoch=0))
  trainer.training_step(policy, {'prompt': ['?'] * len(units)})
  return stepped[0]


# ---------------------------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize('make_one, message', [
  (lambda: make_stage(DPO(), dataclasses.replace(PAIRS, answers=1)), 'rollout.answers = 1: .*use 2 or more$'),
  (lambda: make_stage(IPO(), dataclasses.replace(PAIRS, rewards=())), 'rollout.rewards = ..: nothing says which'),
  (lambda: dataclasses.replace(make_stage(DPO(), PAIRS), rollout=None), 'rollout = None: data has prompts'),
])
def test_refused(make_one, message):
  with pytest.raises(ConfigError, match=message):
    make_one()


def test_any_objective_of_pairs():
  assert make_stage(SimPO(), dataclasses.replace(PAIRS, answers=3)).phases[0].tokens == 8 * 32 * 2
