"""Reward models against TRL's RewardTrainer on transformers' ...ForSequenceClassification."""
import collections
import functools
import types

import jax
import numpy as np
import pytest
import torch
import transformers

from llm_jax import hf
from llm_jax.batch import LanguageModelBatch, PreferenceBatch, RankedBatch
from llm_jax.config.errors import ConfigError
from llm_jax.config.preferences import RewardModel
from llm_jax.config.run import Mesh
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.frozen import Frozen
from llm_jax.objectives.reward_model import RewardModelObjective
from llm_jax.objectives.scalar_head import REWARD, sequence_scores
from llm_jax.sharding.mesh import make_mesh
from llm_jax.sharding.rules import batch_sharding
from llm_jax.train.step import accumulate
from tests.hf import hf_models

TIME = 12
LENGTHS = {'chosen': (13, 7, 9, 4), 'rejected': (6, 13, 9, 5)}  # 13 fill a row: 12 inputs and the target after them
MARGINS = (3.0, 2 / 3, 0.0, 1.0)
END = 1  # of an answer; it stands in the prompts too, and pads
CONFIGS = {
  'plain': RewardModel(),
  'margin': RewardModel(margin=1.0),
  'centred': RewardModel(margin=1.0, center=0.01),
}


def ids_of(side):
  rng = np.random.default_rng(len(side))
  documents = [rng.integers(2, hf_models.VOCAB, length) for length in LENGTHS[side]]
  for ids in documents:
    ids[2] = ids[-1] = END
  return documents


def rows(side, time=TIME, padding=END):
  """A document a row, padded with the id that ends an answer."""
  count = len(LENGTHS[side])
  tokens = np.full((count, time), padding, np.int32)
  targets = tokens.copy()
  weights, segments = np.zeros((count, time), np.float32), np.zeros((count, time), np.int32)
  for row, ids in enumerate(ids_of(side)):
    n = len(ids) - 1
    tokens[row, :n], targets[row, :n] = ids[:-1], ids[1:]
    weights[row, 2:n], segments[row, :n] = 1, 1
  positions = np.broadcast_to(np.arange(time, dtype=np.int32), tokens.shape) * segments
  return LanguageModelBatch(tokens, targets, weights, positions, segments)


def batch(name, **padding):
  margins = np.float32(MARGINS) if name != 'plain' else None
  return PreferenceBatch(rows('chosen', **padding), rows('rejected', **padding), margins)


@functools.cache
def models():
  """Transformers' model with a head of one score, our decoder with the same parameters."""
  decoder = hf_models.make(hf_models.llama())
  torch.manual_seed(1)
  theirs = transformers.LlamaForSequenceClassification(hf_models.llama(num_labels=1, pad_token_id=0))
  theirs.model.load_state_dict(decoder.model.state_dict())
  architecture, params = hf_models.to_ours(decoder)
  model = Transformer(architecture, Execution(unroll=False, kernels='xla'))  # compiles faster
  return theirs, model, {**params, REWARD: {'w': theirs.score.weight.detach().numpy().T.copy()}}


@functools.cache
def step(name, microbatches=1):
  _, model, _ = models()
  objective = RewardModelObjective(model, CONFIGS[name])
  return jax.jit(lambda params, batch: accumulate(objective, params, Frozen(), batch, jax.random.key(0), microbatches))


def trl_loss(name):
  """What RewardTrainer computes and logs; its gradients are left in the model."""
  import trl
  from trl.trainer.reward_trainer import DataCollatorForPreference
  theirs = models()[0]
  theirs.zero_grad()
  examples = [{'chosen_ids': chosen, 'rejected_ids': rejected, 'margin': margin}
              for chosen, rejected, margin in zip(ids_of('chosen'), ids_of('rejected'), MARGINS, strict=True)]
  inputs = DataCollatorForPreference(pad_token_id=0)(examples)
  if name == 'plain':
    del inputs['margin']
  same = lambda values: values
  trainer = types.SimpleNamespace(
    model=theirs, args=types.SimpleNamespace(center_rewards_coefficient=CONFIGS[name].center or None),
    accelerator=types.SimpleNamespace(gather=same, gather_for_metrics=same), _total_train_tokens=0, _tp_size=1,
    _metrics=collections.defaultdict(lambda: collections.defaultdict(list)))
  loss = trl.RewardTrainer.compute_loss(trainer, theirs, inputs)
  loss.backward()
  [logged] = trainer._metrics.values()
  return loss.item(), {metric: values[0] for metric, values in logged.items()}


@pytest.mark.parametrize('name', CONFIGS)
def test_trl(name):
  """Loss, gradients and what is logged."""
  theirs, model, params = models()
  grads, loss = step(name)(params, batch(name))
  want, logged = trl_loss(name)
  assert abs(loss.total / 4 - want) <= 1e-6
  for mine, other in (('accuracy', 'accuracy'), ('reward_margin', 'margin'), ('reward_mean', 'mean_reward')):
    np.testing.assert_allclose(loss.metrics[mine] / 4, logged[other], atol=1e-6)
  head = theirs.score.weight.grad.numpy().T
  np.testing.assert_allclose(grads[REWARD]['w'] / 4, head, atol=5e-6 * np.abs(head).max())
  ours = hf.state_dict_from_params(model.config, {path: grads[path] for path in grads if path != REWARD})
  for parameter_name, parameter in theirs.model.named_parameters():
    gradient = parameter.grad.numpy()
    error = np.linalg.norm(ours[f'model.{parameter_name}'] / 4 - gradient) / np.linalg.norm(gradient)
    assert error <= 5e-6, f'{parameter_name}: {error}'


@pytest.mark.parametrize('padding', [0, 7])
def test_padding_changes_no_score(padding):
  """Nor does what it consists of, the end of an answer inside the prompt, or a row that is full."""
  _, model, params = models()
  scores = jax.jit(functools.partial(sequence_scores, model))
  want = scores(params, rows('chosen'))
  np.testing.assert_allclose(scores(params, rows('chosen', time=20, padding=padding)), want, atol=1e-6)
  for row, ids in enumerate(ids_of('chosen')):
    alone = jax.tree.map(lambda x, row=row: x[row:row + 1], rows('chosen', time=len(ids) - 1)
                         if len(ids) - 1 >= TIME else rows('chosen'))
    np.testing.assert_allclose(scores(params, alone)[0], want[row], atol=1e-6)


def test_the_score_is_read_at_the_end_of_the_answer():
  """Another last token gives another score; another token behind it does not."""
  _, model, params = models()
  scores = jax.jit(functools.partial(sequence_scores, model))
  sides = rows('chosen')
  last = sides.segment_ids.sum(1) - 1
  changed = sides.replace(targets=sides.targets.copy())
  changed.targets[np.arange(4), last] = 5
  assert (np.abs(scores(params, changed) - scores(params, sides)) > 1e-4).all()


# ---------------------------------------------------------------------------------------------- several in their order
RANKS = ((1, 3, 2), (2, 1, 0), (1, 2, 2))  # of the three answers to each prompt; 0: there is none


def ranked_rows():
  """[answers][prompts] of one document each, random ids of several lengths."""
  rng = np.random.default_rng(5)
  sides = [rows('chosen'), rows('rejected'), rows('chosen')]
  for side in sides:
    side.tokens[:] = rng.integers(2, hf_models.VOCAB, side.tokens.shape)
    side.targets[:, :-1] = side.tokens[:, 1:]
  return [jax.tree.map(lambda leaf: leaf[:3], side) for side in sides]


def ranked_batch():
  return RankedBatch(tuple(ranked_rows()), tuple(np.int32(ranks) for ranks in zip(*RANKS, strict=True)))


def test_ranked_answers_by_a_formula():
  """The mean over all pairs of a prompt that differ in rank, in NumPy, of scores by transformers."""
  theirs, model, params = models()
  scores = np.zeros((3, 3))
  for k, side in enumerate(ranked_rows()):
    for prompt in range(3):
      count = int(side.segment_ids[prompt].sum())
      ids = [*side.tokens[prompt, :1], *side.targets[prompt, :count]]
      with torch.no_grad():
        scores[prompt, k] = theirs(torch.tensor([ids])).logits.item()
  losses, right, centres = [], [], []
  for mine, ranks in zip(scores, RANKS, strict=True):
    pairs = [(mine[i], mine[j]) for i in range(3) for j in range(3) if 0 < ranks[i] < ranks[j]]
    losses.append(np.mean([np.log1p(np.exp(rejected - chosen)) for chosen, rejected in pairs]))
    centres.append(np.mean([(chosen + rejected) ** 2 for chosen, rejected in pairs]))
    right.append(np.mean([chosen > rejected for chosen, rejected in pairs]))
  assert len({len(ranks) for ranks in RANKS}) == 1 and 0 < np.mean(right) < 1
  loss = jax.jit(RewardModelObjective(model, RewardModel(center=0.1)))(params, Frozen(), ranked_batch(), None)
  assert loss.weight == 3
  np.testing.assert_allclose(loss.total, sum(losses) + 0.1 * sum(centres), rtol=2e-6)
  np.testing.assert_allclose(loss.metrics['accuracy'], sum(right), rtol=1e-6)


def test_ranked_answers_are_their_pairs_with_weights():
  """Of one prompt with three answers: the gradient is a third of that of its three pairs."""
  _, model, params = models()
  first = jax.tree.map(lambda leaf: leaf[:1], ranked_batch())
  by_rank = [side for _, side in sorted(zip(RANKS[0], first.answers, strict=True), key=lambda pair: pair[0])]
  chosen = [by_rank[0], by_rank[0], by_rank[1]]
  rejected = [by_rank[1], by_rank[2], by_rank[2]]
  join = lambda sides: jax.tree.map(lambda *leaves: np.concatenate(leaves), *sides)
  grads, loss = step('plain')(params, PreferenceBatch(join(chosen), join(rejected)))
  got, ranked = step('plain')(params, first)
  assert ranked.weight == 1 and loss.weight == 3
  np.testing.assert_allclose(ranked.total, loss.total / 3, rtol=1e-6)
  for mine, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(grads), strict=True):
    np.testing.assert_allclose(mine, theirs / 3, rtol=1e-4, atol=1e-7)


def test_ranked_answers_in_microbatches():
  _, _, params = models()
  batch = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf[:1]]), ranked_batch())
  whole, loss = step('centred')(params, batch)
  grads, parts = step('centred', 2)(params, batch)
  np.testing.assert_allclose(parts.total, loss.total, rtol=1e-6)
  for got, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(whole), strict=True):
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_margins_can_be_left_out():
  _, model, params = models()
  without = RewardModelObjective(model, RewardModel(margin=0.0))
  loss = jax.jit(without)(params, Frozen(), batch('margin'), None)
  np.testing.assert_allclose(loss.total, step('plain')(params, batch('plain'))[1].total, rtol=1e-6)


def test_soft_labels_weigh_the_two_losses():
  """By the formula in float64; a label of 1 is a hard one."""
  _, model, params = models()
  objective = jax.jit(RewardModelObjective(model, RewardModel(margin=1.0)))
  probabilities = np.float32([1.0, 0.5, 0.8, 0.1])
  soft = objective(params, Frozen(), batch('margin').replace(soft_labels=probabilities), None)
  scores = [np.float64(sequence_scores(model, params, rows(side))) for side in LENGTHS]
  margin = scores[0] - scores[1] - np.float64(MARGINS)
  p = np.float64(probabilities)
  want = p * np.log1p(np.exp(-margin)) + (1 - p) * np.log1p(np.exp(margin))
  np.testing.assert_allclose(soft.total, want.sum(), rtol=1e-6)
  hard = objective(params, Frozen(), batch('margin').replace(soft_labels=np.ones(4, np.float32)), None)
  np.testing.assert_allclose(hard.total, step('margin')(params, batch('margin'))[1].total, rtol=1e-6)


def test_microbatches_and_devices_give_the_same_gradient():
  _, _, params = models()
  whole, loss = step('centred')(params, batch('centred'))
  mesh = make_mesh(Mesh(data=2, fsdp=2), jax.devices()[:4])
  with jax.set_mesh(mesh):
    sharding = batch_sharding(mesh)
    placed = jax.tree.map(
      lambda x: jax.device_put(x, jax.NamedSharding(mesh, jax.P(*sharding.spec[:np.ndim(x)]))), batch('centred'))
    found = [step('centred', 2)(params, batch('centred')), step('centred')(params, placed)]
  for grads, other in found:
    np.testing.assert_allclose(other.total, loss.total, rtol=1e-6)
    for got, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(whole), strict=True):
      np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('wrong', [{'margin': -1.0}, {'center': float('nan')}])
def test_wrong_options(wrong):
  with pytest.raises(ConfigError, match='finite number of 0 or more'):
    RewardModel(**wrong)
