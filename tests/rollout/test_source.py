"""Rollouts of a tiny model: the same answers in parts, exact resumption, and batches that hold what was sampled."""
import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.config import presets
from llm_jax.config.data import Data, Weighted
from llm_jax.config.errors import ConfigError
from llm_jax.config.policy_gradients import (
  KLInReward,
  PolicyGradient,
  grpo,
  rloo,
)
from llm_jax.config.rewards import Length, Regex
from llm_jax.config.rollout import Rollout
from llm_jax.config.schedules import Constant
from llm_jax.config.sources import Prompts, SortedDigits, Text
from llm_jax.config.stage import Stage
from llm_jax.config.stage_init import Params
from llm_jax.data.prompts import open_prompts
from llm_jax.data.tokenizers.byte_level import ByteTokenizer
from llm_jax.decode.sampling import GREEDY, Sampling
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.frozen import Frozen
from llm_jax.rollout.advantages import advantages
from llm_jax.rollout.rewarded_source import RewardedSource
from llm_jax.rollout.rewards import Rewards
from llm_jax.rollout.sampling import Sampler
from llm_jax.rollout.source import Policy, RolloutSource
from llm_jax.runtime.errors import RewardError
from llm_jax.sharding.rules import batch_sharding
from llm_jax.train.loop import train_loop

ROLLOUT = Rollout((Regex('[^a-m]', weight=0.5), Length(longest=6, margin=5)), answers=4, max_new_tokens=6,
                  temperature=0.8, minibatches=2, replays=2)
TOKENIZER = ByteTokenizer()
EXECUTION = Execution(unroll=False, kernels='xla')


@functools.cache
def model():
  config = presets.llama(d_model=16, num_layers=1, num_heads=2, d_ff=32, vocab_size=257)
  transformer = Transformer(config, EXECUTION)
  params = transformer.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']
  return transformer, jax.tree.map(lambda p: 6 * p, params)  # so that its tokens are not all alike


@dataclasses.dataclass
class State:
  params: object


def make_stage(objective=None, rollout: Rollout = ROLLOUT, **fields) -> Stage:
  return Stage('rewards', Data((Weighted(SortedDigits(3, 100)),)), steps=10, init=Params('before'),
               learning_rate=Constant(1e-3), objective=objective or PolicyGradient(), rollout=rollout,
               **{'seq_len': 32, 'batch_size': 8, **fields})


def make_source(stage: Stage, rows_at_once: int | None = None, kind: type[RolloutSource] = RewardedSource
                ) -> RolloutSource:
  transformer, _ = model()
  prompts = open_prompts(stage.data, TOKENIZER, 'train', seed=3, longest=20)
  sampler = Sampler(transformer.config, EXECUTION, TOKENIZER, prompts.stop_tokens, 6, rows_at_once)
  policy = Policy(transformer, lambda params, frozen: params, lambda params, frozen: params,
                  lambda frozen: frozen.reference)
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ('data', 'fsdp'))
  return kind(stage, prompts, policy, sampler, Rewards(stage.rollout), batch_sharding(mesh), seed=5)


def take(source: RolloutSource, count: int) -> list:
  _, params = model()
  frozen = Frozen(reference=jax.tree.map(lambda p: 0.9 * p, params))
  return [jax.tree.map(np.asarray, source.next(State(params), frozen)) for _ in range(count)]


def segments(batch) -> list:
  """(ids of prompt and answer, targets of the answer) of all answers of a batch, in order."""
  found = []
  for row, segment_ids in enumerate(np.asarray(batch.text.segment_ids)):
    for number in range(1, segment_ids.max() + 1):
      is_mine = segment_ids == number
      is_learnt = is_mine & (batch.text.weights[row] > 0)
      found.append((tuple(batch.text.tokens[row, is_mine]), tuple(batch.text.targets[row, is_learnt])))
  return sorted(found)


def same(a, b) -> bool:
  return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# ---------------------------------------------------------------------------------------------- what is learnt from
def test_every_answer_is_learnt_from_once_in_each_replay():
  source = make_source(make_stage())
  batches = take(source, 4)
  buffer = source._buffer
  rows = [np.sort(buffer.order[replay]) for replay in range(2)]
  np.testing.assert_array_equal(rows, [np.arange(16)] * 2)
  assert not np.array_equal(buffer.order[0], buffer.order[1])
  whole = lambda batches: sorted(answer for batch in batches for answer in segments(batch))
  assert whole(batches[:2]) == whole(batches[2:]) and len(whole(batches[:2])) == 16
  assert same(take(make_source(make_stage()), 4), batches)  # a function of seed and parameters alone


def test_weights_mark_the_answer_and_only_that():
  source = make_source(make_stage())
  [batch, *_] = take(source, 1)
  buffer = source._buffer
  want = []
  for row in buffer.order[0, :8]:
    whole = buffer.ids[row, :buffer.lengths[row]]
    assert chr(whole[buffer.prompt_lengths[row] - 1]) == '>'
    want.append((tuple(whole[:-1]), tuple(whole[buffer.prompt_lengths[row]:])))
  assert segments(batch) == sorted(want)
  assert set(np.unique(batch.text.weights)) == {0.0, 1.0}
  assert batch.text.tokens.shape == (4, 32)  # the least bucket that 8 answers of up to 11 tokens fit into
  count = int(buffer.lengths[buffer.order[0, :8]].sum()) - 8
  numbers = source.numbers()
  assert (numbers['tokens'], numbers['step_tokens'], numbers['padding']) == (count, count, 1 - count / 128)


def test_old_log_probabilities_are_the_samplers():
  """Under the temperature that they were sampled with, to rounding; the numbers tell of it."""
  source = make_source(make_stage())
  take(source, 1)
  numbers = source.numbers()
  assert 0 < numbers['sampler_mismatch_max'] < 1e-4
  assert source._buffer.old_log_probs.min() < -0.1
  assert {'reward', 'reward/regex', 'reward/length', 'groups_alike', 'entropy', 'distinct'} <= numbers.keys()
  take(source, 1)
  assert source.numbers().keys() == {'tokens', 'step_tokens', 'padding'}  # of a step that goes on with a rollout


def test_what_learns_once_computes_log_probabilities_only_to_show_them(monkeypatch):
  """Its entropy is estimated without bias from what was sampled; the batches are else the same."""
  counted: list[bool] = []
  score = RewardedSource._log_probs

  def counting(*args, **kwargs):
    counted.append(True)
    return score(*args, **kwargs)

  monkeypatch.setattr(RewardedSource, '_log_probs', counting)
  stage = make_stage()
  once = lambda **fields: make_source(dataclasses.replace(
    stage, rollout=dataclasses.replace(stage.rollout, minibatches=1, replays=1, **fields)))
  shown, hidden, together = once(samples_every=2), once(samples_every=0), make_source(stage)
  entropies = {}
  for name, source in (('shown', shown), ('hidden', hidden)):
    entropies[name] = []
    for _ in range(2):
      [batch] = take(source, 1)
      assert batch.old_log_probs is None
      entropies[name].append(source.numbers()['entropy'])
  assert len(counted) == 1  # of the first that is shown
  assert entropies['shown'][0] != entropies['hidden'][0] and entropies['shown'][1] == entropies['hidden'][1]
  np.testing.assert_allclose(entropies['hidden'], entropies['shown'][0], rtol=0.2)
  [[_, shapes], *_] = shown.shapes()
  assert shapes.old_log_probs is None
  [[_, shapes], *_] = together.shapes()
  assert shapes.old_log_probs is not None


def test_a_penalty_in_the_reward_is_in_the_advantages():
  source = make_source(make_stage(rloo(kl=0.3)))
  take(source, 1)
  buffer = source._buffer
  assert isinstance(source._objective.kl, KLInReward)
  penalty = 0.3 * (buffer.old_log_probs - buffer.reference_log_probs).sum(1)
  answers = [bytes(ids[ids < 256].astype(np.uint8).tolist()) for ids in (
    row[start:end] for row, start, end in zip(buffer.ids, buffer.prompt_lengths, buffer.lengths, strict=True))]
  regex = np.array([any(not 97 <= byte <= 109 for byte in text) for text in answers])
  lengths = buffer.lengths - buffer.prompt_lengths
  rewards = 0.5 * regex - np.clip(lengths - 1, 0, 5) / 5
  want = advantages((rewards - penalty).reshape(-1, 4), 'leave_one_out').reshape(-1)
  np.testing.assert_allclose(buffer.advantages.sum(1) / lengths, want, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------- chance, and resuming
def test_answers_are_the_same_in_parts():
  transformer, params = model()
  prompts = open_prompts(make_stage().data, TOKENIZER, 'train', seed=3, longest=20).first(6)
  draw = lambda rows, sampling: Sampler(transformer.config, EXECUTION, TOKENIZER, (256,), 6, rows).answers(
    params, prompts, 2, sampling, jax.random.key(1))
  ids = lambda answers: [answer.ids for answer in answers]
  whole = ids(draw(None, Sampling(0.8)))
  assert ids(draw(4, Sampling(0.8))) == whole
  assert len(set(whole)) > 6  # no part repeats another
  assert ids(draw(None, GREEDY))[::2] == ids(draw(None, GREEDY))[1::2]


@pytest.mark.parametrize('done', [1, 3, 4, 6])
def test_a_source_goes_on_bitwise(done):
  """In the middle of a rollout, whose parameters are gone, and between two."""
  stage = make_stage(grpo(kl=0.1))
  source = make_source(stage)
  take(source, done)
  position, arrays = source.position(), source.arrays()
  assert bool(arrays) == (done % 4 != 0)
  resumed = make_source(stage)
  resumed.restore(position, {name: np.asarray(array) for name, array in arrays.items()})
  assert same(take(resumed, 6), take(source, 6))


def test_another_rollout_is_refused_on_resume():
  source = make_source(make_stage())
  take(source, 1)
  other = make_source(make_stage(rollout=dataclasses.replace(ROLLOUT, replays=1)))
  with pytest.raises(ConfigError, match='rollout = .answers=4 minibatches=2 replays=1.: the checkpoint was made with'):
    other.restore(source.position(), source.arrays())


def test_a_reward_that_fails_leaves_the_state_to_be_saved():
  class Failing:
    def next(self, state, frozen):
      if state.step:
        raise RewardError('no number')

    def numbers(self):
      return {}

  rescued = []
  first, second = types.SimpleNamespace(step=0), types.SimpleNamespace(step=1)
  with pytest.raises(RewardError):
    train_loop(first, Frozen(), Failing(), lambda *arguments: (second, {}), 5, [],
               rescue=lambda step, state: rescued.append((step, state)))
  assert rescued == [(1, second)]


# ---------------------------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize('fields, message', [
  (dict(rollout=None), 'rollout = None: data has prompts'),
  (dict(rollout=dataclasses.replace(ROLLOUT, answers=1)), 'rollout.answers = 1: one answer has no other'),
  (dict(rollout=dataclasses.replace(ROLLOUT, answers=3)), 'rollout.answers = 3: use a divisor'),
  (dict(seq_len=6), 'rollout.max_new_tokens = 6: leaves no room'),
  (dict(data=Data((Weighted(Text('books')),))), 'objective = .PolicyGradient.: learns from prompts'),
])
def test_stages_that_are_refused(fields, message):
  with pytest.raises(ConfigError, match=message):
    dataclasses.replace(make_stage(), **fields)


def test_a_prompt_that_is_too_long_is_named(tmp_path):
  path = tmp_path / 'prompts.jsonl'
  path.write_text('{"prompt": "short", "answer": "a"}\n{"prompt": "' + 30 * 'long ' + '"}\n')
  data = Data((Weighted(Prompts(str(path), template=None, val_fraction=0.0)),))
  with pytest.raises(ConfigError, match='prompts.jsonl:2.* = .151 tokens.: with rollout.max_new_tokens behind it'):
    open_prompts(data, TOKENIZER, 'train', seed=0, longest=100)
  prompts = open_prompts(data, TOKENIZER, 'train', seed=0, longest=200)
  [short] = [prompt for prompt in prompts.first(2) if prompt.text == 'short']
  assert short.columns == {'answer': 'a'} and short.ids == (256, *b'short')
