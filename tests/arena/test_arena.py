"""Ratings against choix and against what made the battles; the pages; the command."""
import json

import choix
import numpy as np
import pytest

from launch import arena
from llm_jax.arena.battles import by_orders, by_score, make_battles, read_votes, tally
from llm_jax.arena.bradley_terry import online_elo, rate, strengths
from llm_jax.arena.page import voting_page
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.config.data import Data, Weighted
from llm_jax.config.errors import ConfigError
from llm_jax.config.preferences import RewardModel
from llm_jax.config.run import Run
from llm_jax.config.schedules import Constant
from llm_jax.config.sources import Preferences, StandardLibrary
from llm_jax.config.stage import Stage
from llm_jax.config.stage_init import Params
from llm_jax.config.tokenizers import Bytes
from llm_jax.data.tokenizers.base import make_tokenizer
from llm_jax.data.tokenizers.chat_templates import render
from llm_jax.modules.transformer import Transformer
from llm_jax.tracking.run_config import write_config
from tests.checkpoints.checkpoint_states import make_metadata
from tests.launch.sample_runs import MODEL, params, write_run
from tests.report.html_page import HOSTILE, Page


def draw_battles(true, count, seed):
  """Wins of models with known strengths."""
  random = np.random.default_rng(seed)
  wins = np.zeros((len(true), len(true)))
  for _ in range(count):
    i, j = random.choice(len(true), 2, replace=False)
    won = random.random() < 1 / (1 + np.exp(true[j] - true[i]))
    wins[(i, j) if won else (j, i)] += 1
  return wins


def pairs(wins):
  return [(i, j) for i, j in np.ndindex(wins.shape) for _ in range(int(wins[i, j]))]


@pytest.mark.parametrize('seed', range(3))
def test_strengths_are_those_of_choix(seed):
  wins = draw_battles(np.linspace(-1.5, 1.5, 6), 800, seed)
  want = choix.ilsr_pairwise(6, pairs(wins), max_iter=1_000, tol=1e-12)
  np.testing.assert_allclose(strengths(wins), want, rtol=0, atol=1e-6)


def test_one_sided_battles_are_rated_too():
  """Where full steps of Newton's method would leave the region that they are made for."""
  wins = np.array([[0, 5_000, 0], [1, 0, 3_000], [0, 1, 0]])
  want = choix.ilsr_pairwise(3, pairs(wins), max_iter=10_000, tol=1e-12)
  np.testing.assert_allclose(strengths(wins), want, rtol=0, atol=1e-6)


def test_a_tie_is_half_a_win_for_both():
  no = np.zeros((2, 2))
  ties = np.array([[0, 10], [10, 0]])
  ratings = rate('ab', np.array([[0, 30], [10, 0]]), ties)
  assert ratings.names == ('a', 'b') and ratings.battles.tolist() == [50, 50]
  assert abs((ratings.ratings[0] - ratings.ratings[1]) - 400 * np.log10(35 / 15)) < 1e-6
  assert rate('ab', no, ties).ratings.tolist() == [1_000, 1_000]


@pytest.mark.parametrize('wins, names', [
  ([[0, 3, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]], 'a, b'),
  ([[0, 3, 2], [1, 0, 2], [0, 0, 0]], 'c'),
])
def test_battles_that_cannot_rank_are_refused_by_name(wins, names):
  with pytest.raises(ConfigError) as error:
    rate('abcd'[:len(wins)], np.array(wins), np.zeros((len(wins), len(wins))))
  assert error.value.value == names


@pytest.mark.slow
def test_intervals_cover_the_truth():
  true = np.array([-0.8, -0.3, 0.0, 0.4, 0.7])
  covered = []
  for seed in range(200):
    wins = draw_battles(true, 1_000, seed)
    ratings = rate('abcde', wins, np.zeros_like(wins), samples=500, seed=seed)
    for name, low, high in zip(ratings.names, ratings.low, ratings.high, strict=True):
      covered.append(low <= 1_000 + 400 / np.log(10) * true['abcde'.index(name)] <= high)
  assert abs(np.mean(covered) - 0.95) <= 0.01


def test_online_elo_depends_on_the_order():
  battles = [('a', 'b', 1.0), ('b', 'a', 1.0)] * 20 + [('a', 'b', 1.0)] * 10
  forward = online_elo('ab', battles)[-1]
  assert online_elo('ab', battles[:1])[0] == {'a': 1_002.0, 'b': 998.0}
  assert forward != online_elo('ab', battles[::-1])[-1] and sum(forward.values()) == pytest.approx(2_000)


def test_every_two_models_meet_on_every_prompt_and_the_page_does_not_name_them():
  answers = {'secret-one': ['yes', HOSTILE], 'secret-two': ['no', 'no'], 'secret-three': ['?', '?']}
  battles = make_battles(['p', 'q'], answers, seed=1)
  met = {(battle.prompt, frozenset((battle.left, battle.right))) for battle in battles}
  assert len(battles) == len(met) == 6 and {battle.left for battle in battles} != {'secret-one'}
  source = voting_page(battles)
  assert 'secret' not in source and not Page(source).all('img')
  names, wins, _ = tally(battles, by_score(battles, lambda pairs: [len(answer) for _, answer in pairs]))
  assert names == sorted(answers) and wins[names.index('secret-one')].tolist() == [0, 2, 2]


def test_a_language_model_has_to_say_so_in_both_orders():
  battles = make_battles(['p', 'q', 'r', 's'], {'a': ['1'] * 4, 'b': ['2'] * 4})
  orders = np.array([[0.9, 0.6], [0.9, 0.4], [0.1, 0.6], [0.2, 0.3]])
  votes = by_orders(battles, lambda known: orders[[battle.number for battle in known]])
  assert votes == [(0, 'left'), (1, 'tie'), (2, 'tie'), (3, 'right')]


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  folders = [tmp_path_factory.mktemp('runs') / name for name in 'ab']
  for folder in folders:
    folder.mkdir()
    write_run(folder)
  return folders


def test_the_command(runs, tmp_path, capsys):
  prompts = tmp_path / 'prompts.txt'
  prompts.write_text('def f\nimport x\nclass A\na = \n')
  out = tmp_path / 'arena'
  models = [f'--checkpoint={folder}' for folder in runs]
  flags = [*models, f'--prompts={prompts}', f'--out={out}', '--max_new_tokens=8']
  judge = tmp_path / 'judge.py'
  judge.write_text('import itertools\ncount = itertools.count()\n\n\ndef verify(prompt, answer):\n'
                   '  return next(count) * 7 % 5\n')
  assert arena.main([*flags, f'--judge={judge}:verify']) == 0
  assert 'ratings.html' in capsys.readouterr().out
  judged = json.loads((out / 'ratings.json').read_text())
  assert sorted(judged['names']) == sorted(map(str, runs)) and judged['battles'] == [4, 4]

  battles = [json.loads(line) for line in (out / 'battles.jsonl').read_text().splitlines()]
  assert len(battles) == 4 and all(battle['left_answer'] for battle in battles)
  votes = tmp_path / 'votes.jsonl'
  votes.write_text(''.join(json.dumps({'battle': number, 'choice': choice}) + '\n'
                           for number, choice in enumerate(('left', 'right', 'tie', 'tie'))))
  assert arena.main([f'--votes={votes}', f'--out={out}']) == 0
  assert len(json.loads((out / 'ratings.json').read_text())['online_elo']) == 4
  assert 'not distinguishable' in capsys.readouterr().out


@pytest.fixture(scope='module')
def unlike(tmp_path_factory):
  """Two runs whose models say different things."""
  folders = [tmp_path_factory.mktemp('unlike') / name for name in 'ab']
  for folder in folders:
    folder.mkdir()
    write_run(folder)
  fingerprint = make_tokenizer(Bytes(), None).fingerprint
  with CheckpointStore(folders[1] / 'checkpoints' / 'first', keep=2) as store:
    store.save(6, {'params': params(9)}, make_metadata(tokenizer=fingerprint), wait=True)
  return folders


def write_reward_run(folder):
  """A run with a reward model, and its parameters."""
  folder.mkdir()
  data = Data((Weighted(Preferences('pairs.jsonl', 'plain')),))
  stage = Stage('reward', data, 5, 40, 8, Constant(1e-3), objective=RewardModel(), init=Params('first'))
  first = Stage('first', Data((Weighted(StandardLibrary()),)), 5, 32, 8, Constant(1e-3))
  write_config(folder, Run(MODEL, (first, stage), Bytes()))
  tokenizer = make_tokenizer(Bytes(), None)
  tokenizer.save(folder / 'tokenizer')
  trained = {**params(7), 'reward': {'w': np.random.default_rng(0).normal(size=(16, 1)).astype(np.float32)}}
  with CheckpointStore(folder / 'checkpoints' / 'reward', keep=2) as store:
    store.save(5, {'params': trained}, make_metadata(tokenizer=tokenizer.fingerprint), wait=True)
  return trained, tokenizer


def battles_and_votes(out):
  read = lambda name: [json.loads(line) for line in (out / name).read_text().splitlines()]
  return read('battles.jsonl'), [row['choice'] for row in read('votes.jsonl')]


def test_a_reward_model_judges(unlike, tmp_path):
  """The higher score wins, read at the end of the answer as the chat template of its stage writes it."""
  trained, tokenizer = write_reward_run(tmp_path / 'c')
  prompts = tmp_path / 'prompts.txt'
  prompts.write_text('def f\nimport x\nclass A\n')
  models = [f'--checkpoint={folder}' for folder in unlike]
  out = tmp_path / 'arena'
  with pytest.raises(SystemExit):  # so few battles may be won by one of them, which cannot be rated
    arena.main([*models, f'--prompts={prompts}', f'--out={out}', '--max_new_tokens=8',
                f'--reward_model={tmp_path / "c"}'])
    raise SystemExit
  model = Transformer(MODEL)

  def score(prompt, answer):
    ids, _ = render([{'role': 'user', 'content': prompt}, {'role': 'assistant', 'content': answer}], 'plain', tokenizer)
    ids = ids[:41]  # of a row of 40 and the target after it
    features = model.apply({'params': {k: v for k, v in trained.items() if k != 'reward'}}, ids[None],
                           method='features')
    return (np.asarray(features)[0, -1] @ trained['reward']['w'])[0]

  battles, votes = battles_and_votes(out)
  assert len(votes) == 3
  for battle, choice in zip(battles, votes, strict=True):
    left, right = (score(battle['prompt'], battle[f'{side}_answer']) for side in ('left', 'right'))
    assert choice == ('left' if left > right else 'right')


def test_a_language_model_judges(unlike, tmp_path):
  prompts = tmp_path / 'prompts.txt'
  prompts.write_text('def f\nimport x\nclass A\n')
  template = tmp_path / 'judge.txt'
  template.write_text('{prompt}|{first}|{second}|')
  out = tmp_path / 'arena'
  flags = [*[f'--checkpoint={folder}' for folder in unlike], f'--prompts={prompts}', f'--out={out}',
           '--max_new_tokens=4', f'--judge_model={unlike[0]}', f'--judge_template={template}']
  with pytest.raises(SystemExit):
    arena.main(flags)
    raise SystemExit
  battles, votes = battles_and_votes(out)

  def says_first(prompt, first, second):
    ids = np.array([[256, *f'{prompt}|{first}|{second}|'.encode()]])
    logits = np.asarray(Transformer(MODEL).apply({'params': params(5)}, ids)[0, -1])
    return logits[ord('A')] > logits[ord('B')]

  for battle, choice in zip(battles, votes, strict=True):
    left, right = battle['left_answer'], battle['right_answer']
    both = says_first(battle['prompt'], left, right), not says_first(battle['prompt'], right, left)
    assert choice == ('left' if all(both) else 'tie' if any(both) else 'right')


@pytest.mark.parametrize('line, words', [('{"battle": 9, "choice": "left"}', 'no such battle'),
                                         ('{"battle": 0, "choice": "best"}', 'left, right, tie'),
                                         ('[]', 'no JSON object'),
                                         ('x', 'no JSON')])
def test_bad_votes_are_refused_by_line(line, words, tmp_path):
  battles = make_battles(['p'], {'a': ['1'], 'b': ['2']})
  path = tmp_path / 'votes.jsonl'
  path.write_text('\n' + line + '\n')
  with pytest.raises(ConfigError, match=words):
    read_votes(path, battles)


@pytest.mark.parametrize('flags, message', [
  ([], '--votes'), (['--prompts=p', '--checkpoint=a'], '--checkpoint'), (['--judge=x', '--votes=v'], '--judge'),
  (['--prompts=p', '--checkpoint=a', '--checkpoint=b', '--votes=v'], '--votes'),
  (['--prompts=p', '--checkpoint=a', '--checkpoint=b', '--judge=x', '--reward_model=c'], 'one judge decides'),
  (['--prompts=p', '--checkpoint=a', '--checkpoint=b', '--judge_model=c'], '--judge_template = None: write what'),
  (['--prompts=p', '--checkpoint=a', '--checkpoint=b', '--judge_template=t'], 'only with --judge_model'),
  (['--prompts=p', '--checkpoint=a', '--checkpoint=b', '--judge_model=c', '--judge_template={template}'],
   'lacks {second}'),
  (['--prompts={template}', '--checkpoint={run}', '--checkpoint=b', '--reward_model={run}'],
   'no stage whose objective is RewardModel')])
def test_wrong_flags_are_one_line(flags, message, runs, capsys, tmp_path):
  template = tmp_path / 'judge.txt'
  template.write_text('{prompt} {first}')
  flags = [flag.replace('{template}', str(template)).replace('{run}', str(runs[0])) for flag in flags]
  with pytest.raises(SystemExit) as stop:
    arena.main([f'--out={tmp_path}', *flags])
  error = capsys.readouterr().err
  assert stop.value.code == 2 and error.count('\n') == 1 and message in error
