"""Constitutional AI in a run: answers that are revised, pairs that are judged, nothing lost when it is stopped."""
import dataclasses
import json
import signal
import time
import types

import jax
import numpy as np
import pytest

from llm_jax.config import presets
from llm_jax.config.errors import ConfigError
from llm_jax.config.experiment import Principle, RevisedAnswers, Revisions, Run, SortedDigits, Text, mix, stage
from llm_jax.data.prompts import open_prompts
from llm_jax.data.tokenizers.byte_level import ByteTokenizer
from llm_jax.decode.sampling import Sampling
from llm_jax.rollout.sampling import Sampler
from llm_jax.tracking.metrics import read_metrics
from llm_jax.train.data import check_room
from llm_jax.train.samples import files_of, is_made, make_samples, parts_of, seed_of
from tests.train import runs
from tests.train.stopped_parts import parts_written
from tests.train.test_samples import ROWS, make_session

PRINCIPLES = (Principle(critique='!?', revision='!-'), Principle(revision='#-'))
REVISIONS = Revisions('texts', SortedDigits(3, 100), PRINCIPLES, revisions=2, count=14, max_new_tokens=5,
                      temperature=0.8, rows_at_once=6)
PARTS = 3  # of 6, 6 and 2 prompts


def session_in(folder):
  """Its model is a random one, that ends what it says every few tokens."""
  session = make_session(folder)
  params = session.saved_models().whole(None, None)
  params['head'] = {'w': params['head']['w'].at[256].multiply(5.0)}
  session.saved_models = lambda: types.SimpleNamespace(whole=lambda stage, checkpoint: params)
  run = Run(session.run.model, (stage('texts', Text('books'), **ROWS), stage('sl', RevisedAnswers(REVISIONS), **ROWS)))
  session.run = run
  return session


def make(session):
  make_samples(session, session.run.stages[1], REVISIONS)
  return files_of(session, REVISIONS)


@pytest.fixture(scope='module')
def untouched(tmp_path_factory):
  return make(session_in(tmp_path_factory.mktemp('untouched')))


def test_the_model_itself_criticises_and_revises(untouched, tmp_path):
  """What it says to each conversation, with the answer, the request and the critique before, drawn anew."""
  session = session_in(tmp_path / 'run')
  params = session.saved_models().whole(None, None)
  records = untouched.records()
  assert len({record['prompt'] for record in records}) == 14
  sampler = Sampler(session.run.model, session.execution, session.tokenizer, (256,), 5)
  prompts = open_prompts(mix(REVISIONS.prompts), session.tokenizer, 'train', seed=seed_of(untouched), longest=28)
  key = jax.random.fold_in(jax.random.key(seed_of(untouched)), 0)

  def draw(texts, number):
    """Of each, which is several turns, each with its end behind it where the model says it."""
    asked = [dataclasses.replace(prompts.at(0), ids=(256, *ids)) for ids in texts]
    return sampler.answers(params, asked, 1, Sampling(0.8), jax.random.fold_in(key, number))

  first = parts_of(REVISIONS, prompts)[0]
  answers = draw([prompt.text.encode() for prompt in first], 0)
  assert [record['answer']['text'] for record in records[:6]] == [answer.text for answer in answers]
  assert any(answer.ended for answer in answers)
  ended = [row for row, answer in enumerate(answers) if answer.ended and answer.text.strip()]
  told = lambda answer: (*answer.text.encode(), 256)  # which are not the ids that were drawn where these are no text
  said = {row: (*first[row].text.encode(), *told(answers[row])) for row in ended}
  chosen = {row: PRINCIPLES[records[row]['revisions'][0]['principle']] for row in ended}
  criticised = [row for row in ended if chosen[row].critique]
  critiques = dict(zip(criticised, draw([(*said[row], *b'!?') for row in criticised], 1), strict=True))
  assert {row: critique.text for row, critique in critiques.items()} == {
    row: records[row]['revisions'][0]['critique'] for row in criticised}
  asked = {}
  for row in ended:
    critique = critiques.get(row)
    if critique is None:
      asked[row] = (*said[row], *b'#-')
    elif critique.ended and critique.text.strip():
      asked[row] = (*said[row], *b'!?', *told(critique), *b'!-')
  revised = dict(zip(asked, draw(list(asked.values()), 2), strict=True))
  assert {row: answer.text for row, answer in revised.items()} == {
    row: records[row]['revisions'][0]['text'] for row in asked}
  assert revised


def test_principles_are_drawn_for_each_revision(untouched):
  drawn = [revision['principle'] for record in untouched.records() for revision in record['revisions']]
  assert set(drawn) == {0, 1}
  told = json.loads((untouched.folder / 'manifest.json').read_text())
  kept = [revision['kept'] for record in untouched.records() for revision in record['revisions']]
  assert told['kept'] == pytest.approx(np.mean(kept)) and 0 < told['kept'] < 1


@pytest.mark.parametrize('stopped_after', range(PARTS + 1))
def test_a_run_that_is_stopped_goes_on(stopped_after, untouched, tmp_path, monkeypatch):
  """Nothing is lost, nothing is there twice, and what is there is not made again."""
  session = session_in(tmp_path / 'run')
  written, resumed = parts_written(lambda: make(session), lambda: is_made(session, REVISIONS), 'write_records',
                                   stopped_after, monkeypatch)
  assert written == [*range(PARTS)]
  assert (resumed.folder / 'answers.jsonl').read_bytes() == (untouched.folder / 'answers.jsonl').read_bytes()
  assert is_made(session, REVISIONS)


def test_conversations_have_room_in_learned_positions():
  model = presets.gpt2(16, 1, 2, vocab_size=257, max_length=24)
  session = types.SimpleNamespace(run=types.SimpleNamespace(model=model), tokenizer=ByteTokenizer())
  prompts = open_prompts(mix(REVISIONS.prompts), session.tokenizer, 'train', seed=0, longest=20)
  check_room(session, REVISIONS, prompts)  # 5 of the prompt, 4 of the requests, 15 of what is said
  with pytest.raises(ConfigError, match='samples.max_new_tokens = 6: a prompt with answer, critique and revision may'):
    check_room(session, dataclasses.replace(REVISIONS, max_new_tokens=6), prompts)


# ---------------------------------------------------------------------------------------------- whole runs
@pytest.fixture(scope='module')
def whole_run(tmp_path_factory):
  """An uninterrupted run: a helpful model, its revised answers, a reward model of judged pairs, RL."""
  folder = tmp_path_factory.mktemp('whole')
  runs.run(folder / 'none', folder / 'run', experiment=runs.tiny('constitutional', folder / 'none'))
  return folder / 'run'


@pytest.mark.slow
def test_what_a_person_sees(whole_run):
  finals = {record['stage']: record for record in read_metrics(whole_run) if record['kind'] == 'final'}
  for name in ('supervised', 'rl'):
    assert {'verified_greedy/breaks', 'verified_sampled/helps', 'verified_sampled/breaks_at_start',
            'verified_sampled/breaks_margin_of_error'} <= finals[name].keys()
  rewarded = [record for record in read_metrics(whole_run) if 'reward/judge_preference' in record]
  assert all(record['reward/judge_preference'] == pytest.approx(0.5) for record in rewarded) and rewarded
  [pairs] = whole_run.glob('samples/supervised-*/judged_pairs.jsonl')
  labels = [json.loads(line)['soft_label'] for line in pairs.read_text().splitlines()]
  assert len(set(labels)) > 3 and all(0.5 <= label <= 1 for label in labels)


@pytest.mark.slow
@pytest.mark.parametrize('folder, part', [('helpful', 1), ('supervised', 0)])
def test_a_killed_run_goes_on_bitwise(folder, part, whole_run, tmp_path):
  """Killed as soon as a part is on disk: of the revisions, and of the judged pairs."""
  experiment, workdir = runs.tiny('constitutional', tmp_path / 'none'), tmp_path / 'run'
  process = runs.start(tmp_path / 'none', workdir, experiment=experiment)
  while process.poll() is None and not list(workdir.glob(f'samples/{folder}-*/parts/{part:06}.jsonl')):
    time.sleep(0.002)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  runs.run(tmp_path / 'none', workdir, experiment=experiment)
  assert runs.losses(workdir) == runs.losses(whole_run)
  for path in whole_run.glob('samples/*/*.jsonl'):
    assert (workdir / path.relative_to(whole_run)).read_bytes() == path.read_bytes()
  for stage_name in ('helpful', 'supervised', 'preferences', 'rl'):
    assert runs.state_hash(workdir, stage_name) == runs.state_hash(whole_run, stage_name)
