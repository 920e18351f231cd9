"""Judges: probabilities of options from the model's logits, both orders, and what is refused before anything runs."""
import dataclasses
import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.config import presets
from llm_jax.config.errors import ConfigError
from llm_jax.config.experiment import stage
from llm_jax.config.judges import PairJudge, RatingJudge
from llm_jax.config.policy_gradients import grpo
from llm_jax.config.prompt_sources import DigitTexts, SortedDigits
from llm_jax.config.rewards import Contains, JudgePreference, JudgeRating
from llm_jax.config.rollout import Rollout
from llm_jax.config.run import Run
from llm_jax.config.schedules import Constant
from llm_jax.config.stage_init import Params
from llm_jax.data.prompts import Prompt
from llm_jax.data.tokenizers.byte_level import ByteTokenizer
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.frozen import Frozen, FrozenModel
from llm_jax.rollout.judging import JudgeModel, TwoAnswers, option_ids, principle_for
from llm_jax.rollout.model_rewards import check_judges, make_model_scorer
from llm_jax.rollout.rewards import Rewards
from llm_jax.rollout.sampling import Answer
from llm_jax.runtime.errors import RewardError

TOKENIZER = ByteTokenizer()
MODEL = Params('before')
PAIRS = PairJudge(MODEL, '{prompt} A:{first} B:{second} {principle}? {{', principles=('short', 'kind'))
RATING = RatingJudge(MODEL, '{prompt}>{answer}\n', options=('0', '1', '2'))
EXECUTION = Execution(unroll=False, kernels='xla')


@functools.cache
def judge_model() -> JudgeModel:
  config = presets.llama(d_model=16, num_layers=1, num_heads=2, d_ff=32, vocab_size=257)
  params = Transformer(config, EXECUTION).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']
  return JudgeModel(config, jax.tree.map(lambda p: 6 * p, params), TOKENIZER, EXECUTION, batch_size=4)


def shares(text: str, options: tuple[str, ...]) -> np.ndarray:
  """The probabilities of the options behind a text, divided by their sum, from the logits of a whole forward pass."""
  model = judge_model()
  ids = np.array([[256, *text.encode()]])
  logits = np.asarray(Transformer(model.model, EXECUTION).apply({'params': model.params}, ids)[0, -1], np.float64)
  probabilities = np.exp(logits - logits.max())
  chosen = probabilities[[ord(option) for option in options]]
  return chosen / chosen.sum()


@pytest.mark.parametrize('chosen', ['short', 'kind'])
def test_a_pair_is_asked_about_in_both_orders(chosen):
  pairs = [TwoAnswers('tell', f'one{i}', 'two {more}') for i in range(20)]
  pairs = [pair for pair in pairs if principle_for(PAIRS, pair) == chosen][:3]
  assert len(pairs) == 3
  found = judge_model().prefer(PAIRS, pairs)
  for pair, probability in zip(pairs, found, strict=True):
    ask = lambda a, b: shares(f'tell A:{a} B:{b} {chosen}? {{', ('A', 'B'))
    want = (ask(pair.first, pair.second)[0] + ask(pair.second, pair.first)[1]) / 2
    assert probability == pytest.approx(want, abs=1e-6)
    assert abs(probability - 0.5) > 1e-4
  turned = judge_model().prefer(PAIRS, [TwoAnswers(pair.prompt, pair.second, pair.first) for pair in pairs])
  np.testing.assert_allclose(found + turned, 1, atol=1e-12)
  np.testing.assert_allclose(judge_model().prefer(PAIRS, [TwoAnswers('tell', 'same', 'same')]), 0.5, atol=1e-12)


def test_a_rating_is_the_expected_value_of_its_options():
  texts = ['yes', 'no{}', 'perhaps, for all I know']
  found = judge_model().rate(RATING, ['tell'] * 3, texts)
  for text, rating in zip(texts, found, strict=True):
    assert rating == pytest.approx(shares(f'tell>{text}\n', RATING.options) @ [0, 0.5, 1], abs=1e-6)
  other = RatingJudge(MODEL, RATING.template, RATING.options, values=(1.0, -2.0, 4.0))
  [rating] = judge_model().rate(other, ['tell'], ['yes'])
  assert rating == pytest.approx(shares('tell>yes\n', other.options) @ [1, -2, 4], abs=1e-5)


def test_a_win_rate_is_a_mean_over_the_others():
  prompts, answers = ['tell', 'say'], [['a', 'bb', 'ccc'], ['no', 'yes', 'no']]
  found = judge_model().win_rates(PAIRS, prompts, answers)
  for prompt, group, rates in zip(prompts, answers, found, strict=True):
    beats = {(a, b): judge_model().prefer(PAIRS, [TwoAnswers(prompt, group[a], group[b])])[0]
             for a, b in itertools.permutations(range(3), 2)}
    want = [np.mean([beats[a, b] for b in range(3) if b != a]) for a in range(3)]
    np.testing.assert_allclose(rates, want, atol=1e-6)
  np.testing.assert_allclose(found.mean(1), 0.5, atol=1e-12)
  assert judge_model().win_rates(PAIRS, prompts, [['a'], ['b']]).tolist() == [[0.5], [0.5]]


def test_principles_are_drawn_by_the_texts():
  pairs = [TwoAnswers(f'prompt {i}', 'first', 'second') for i in range(400)]
  drawn = [principle_for(PAIRS, pair) for pair in pairs]
  assert 150 < drawn.count('kind') < 250
  assert drawn == [principle_for(PAIRS, TwoAnswers(pair.prompt, pair.second, pair.first)) for pair in pairs]


# ---------------------------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize('make, message', [
  (lambda: PairJudge(MODEL, ''), 'template = .*: write what the judge is asked, with {prompt}, {first}, {second} in'),
  (lambda: PairJudge(MODEL, '{prompt} {first}'), 'template = .*: lacks {second}'),
  (lambda: PairJudge(MODEL, '{prompt} {first} {second} {answer}'), 'template = .*: {answer} is none of its fields'),
  (lambda: PairJudge(MODEL, '{prompt!r} {first} {second}'), 'template = .*: {prompt} is none of its fields'),
  (lambda: PairJudge(MODEL, '{prompt} {first} {second'), 'template = .*: write a brace that is meant as one twice'),
  (lambda: PairJudge(MODEL, '{prompt} {first} {second}', principles=('kind',)), 'has no {principle}: put it in'),
  (lambda: PairJudge(MODEL, '{prompt} {first} {second} {principle}'), 'has {principle}: name one or more'),
  (lambda: PairJudge(MODEL, '{prompt} {first} {second}', options=('A', 'B', 'C')), 'options = .*: name one for each'),
  (lambda: PairJudge(MODEL, '{prompt} {first} {second}', options=('A', 'A')), 'options = .*: name what the judge may'),
  (lambda: PairJudge(MODEL, '{prompt} {first} {second}', chat='chat'), "chat = 'chat': use one of"),
  (lambda: RatingJudge(MODEL, 'rate {answer}'), 'template = .*: lacks {prompt}'),
  (lambda: RatingJudge(MODEL, '{prompt} {answer}', values=(1.0,)), 'values = .*: give a finite number for each of the'),
])
def test_refused(make, message):
  with pytest.raises(ConfigError, match=message):
    make()


def test_options_are_single_tokens():
  judge = PairJudge(MODEL, '{prompt} {first} {second}', options=('(A)', '(B)'))
  with pytest.raises(ConfigError, match=r"options = '\(A\)': is 3 tokens to this tokenizer"):
    option_ids(judge, TOKENIZER)
  chat = PairJudge(MODEL, '{prompt} {first} {second}', chat='chatml')
  with pytest.raises(ConfigError, match='template = .chatml.: the tokenizer lacks its special tokens'):
    option_ids(chat, TOKENIZER)


# ---------------------------------------------------------------------------------------------- as rewards
def answer(prompt: str, text: str, **columns) -> Answer:
  return Answer(Prompt(prompt, (1, 2), columns), (3,), text, True, (0.0,))


def rewards_by_judges(*rewards, group: int):
  model = judge_model()
  rollout = Rollout(rewards)
  frozen = Frozen(reference=None, reward={
    name: FrozenModel(model.params, Transformer(model.model, EXECUTION)) for name in rollout.reward_models})
  prompts = types.SimpleNamespace(tokenizer=TOKENIZER, end=())
  by_model = make_model_scorer(rollout, frozen, prompts, group, 4, (16,), lambda batch: batch)
  return lambda answers: Rewards(rollout).score(answers, by_model)


def test_a_stage_is_rewarded_by_judges():
  """An answer by its rating, by the others of its group, and by the answer that its row has."""
  answers = [answer('tell', 'a', gold='best'), answer('tell', 'bb', gold='best'),
             answer('say', 'no', gold='yes'), answer('say', 'yes', gold='yes')]
  score = rewards_by_judges(JudgeRating(RATING), JudgePreference(PAIRS), JudgePreference(PAIRS, against='gold'),
                            Contains('gold'), group=2)
  rating, preference, against, contains = score(answers)
  model = judge_model()
  np.testing.assert_allclose(rating, model.rate(RATING, ['tell', 'tell', 'say', 'say'], ['a', 'bb', 'no', 'yes']))
  wins = model.prefer(PAIRS, [TwoAnswers('tell', 'a', 'bb'), TwoAnswers('say', 'no', 'yes')])
  np.testing.assert_allclose(preference, [wins[0], 1 - wins[0], wins[1], 1 - wins[1]], atol=1e-6)
  assert against[3] == pytest.approx(0.5) and against[0] != pytest.approx(0.5)
  assert contains.tolist() == [0, 0, 0, 1]


def test_a_row_without_the_answer_to_compare_with():
  with pytest.raises(RewardError, match="reward judge_preference: the row of the prompt 'tell' has no 'gold'"):
    rewards_by_judges(JudgePreference(PAIRS, against='gold'), group=1)([answer('tell', 'a')])


def test_a_judge_is_an_earlier_stage():
  fields = dict(seq_len=16, batch_size=4, steps=2, learning_rate=Constant(1e-3))
  run = lambda judge: Run(presets.llama(d_model=16, num_layers=1, num_heads=2, vocab_size=257), (
    stage('before', DigitTexts(digits=3, count=50), **fields),
    stage('rl', SortedDigits(digits=3, count=50), **fields, objective=grpo(), init=Params('before'),
          rollout=Rollout((JudgePreference(judge),), answers=2, max_new_tokens=4))))
  assert run(PAIRS)
  later = dataclasses.replace(PAIRS, model=Params('rl'))
  with pytest.raises(ConfigError, match=r"stages\[1\].rollout.rewards\[0\].judge.model = 'rl': name an earlier stage"):
    run(later)


def test_options_are_looked_at_before_the_run_begins():
  judge = dataclasses.replace(PAIRS, options=('yes', 'no'))
  with pytest.raises(ConfigError, match=r"rollout.rewards\[1\].judge.options = 'yes': is 3 tokens"):
    check_judges(Rollout((Contains(), JudgePreference(judge))), TOKENIZER, 'rollout')
