"""The models that a stage distils: where they are found, and which are refused."""
import dataclasses
import shutil
import types

import jax
import numpy as np
import pytest

from llm_jax import hf
from llm_jax.config import presets
from llm_jax.config.errors import ConfigError
from llm_jax.config.experiment import (
  BestOf,
  Constant,
  Distillation,
  Exact,
  Jsonl,
  JudgeRating,
  Params,
  RatingJudge,
  Run,
  Samples,
  SavedRun,
  SortedDigits,
  mix,
  stage,
)
from llm_jax.config.run import Mesh
from llm_jax.config.stage_init import HuggingFace
from llm_jax.data.tokenizers.base import make_tokenizer
from llm_jax.data.tokenizers.byte_level import ByteTokenizer
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.sharding.mesh import make_mesh
from llm_jax.tracking.metrics import read_metrics
from llm_jax.train.frozen_models import check_tokenizers, find_reward_models, find_teacher
from tests.train import runs

MODEL = presets.llama(d_model=16, num_layers=1, num_heads=2, num_kv_heads=2, d_ff=32, vocab_size=264)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A model of transformers with its tokenizer, wider than the student."""
  teacher = dataclasses.replace(MODEL, d_model=24)
  path = tmp_path_factory.mktemp('teacher') / 'hf'
  params = Transformer(teacher, Execution(unroll=False)).init(jax.random.key(0), np.zeros((1, 1), np.int32))['params']
  hf.save_pretrained(path, teacher, jax.device_get(params), eos=ByteTokenizer().eot,
                     extra=hf.tokenizer_files(ByteTokenizer()))
  return path


def session_of(tokenizer, vocab_size=264, dtype='float32'):
  """What finding a teacher asks of a session."""
  model = dataclasses.replace(MODEL, vocab_size=vocab_size)
  return types.SimpleNamespace(run=types.SimpleNamespace(model=model), mesh=make_mesh(Mesh(data=1), jax.devices()[:1]),
                               tokenizer=tokenizer, execution=Execution(dtype))


def student(teacher):
  return stage('student', Jsonl('text.jsonl'), steps=1, seq_len=8, batch_size=1, learning_rate=Constant(1e-3),
               objective=Distillation(teacher))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_folder_of_transformers(folder, dtype):
  session = session_of(make_tokenizer(hf.read_tokenizer(folder)), dtype=dtype)
  found = find_teacher(session, student(HuggingFace(str(folder))))
  read = found.read()
  assert read.model == found.abstract.model and read.model.config.d_model == 24
  for shape, leaf in zip(jax.tree.leaves(found.abstract), jax.tree.leaves(read), strict=True):
    assert (shape.shape, shape.dtype, shape.sharding) == (leaf.shape, leaf.dtype, leaf.sharding)
  want = hf.load_pretrained(folder)[1]['embedding']['w']
  np.testing.assert_allclose(read.params['embedding']['w'].astype('float32'), want,
                             rtol=0 if dtype == 'float32' else 0.01)


def test_another_tokenizer_is_refused(folder):
  with pytest.raises(ConfigError, match='probabilities of other tokens cannot be compared'):
    find_teacher(session_of(ByteTokenizer()), student(HuggingFace(str(folder))))


def judged_by(model):
  rewards = (Exact(), JudgeRating(RatingJudge(model, '{prompt}{answer}')))
  samples = Samples('before', SortedDigits(), rewards, max_new_tokens=4)
  return stage('student', BestOf(samples), steps=1, seq_len=32, batch_size=1, learning_rate=Constant(1e-3))


def test_a_judge_has_the_tokenizer_of_the_run(folder, tmp_path):
  """Which is looked at before a stage begins; a stage of the run has it."""
  judge = HuggingFace(str(folder))
  session = session_of(make_tokenizer(hf.read_tokenizer(folder)))
  check_tokenizers(session, judged_by(judge))
  found = find_reward_models(session, judged_by(judge), judged_by(judge).answering)
  assert found['judge_rating'].read().model.config.d_model == 24  # of another size than the run's
  check_tokenizers(session_of(ByteTokenizer()), judged_by(Params('before')))
  for look in (lambda: check_tokenizers(session_of(ByteTokenizer()), judged_by(judge)),
               lambda: find_reward_models(session_of(ByteTokenizer()), judged_by(judge), judged_by(judge).answering)):
    with pytest.raises(ConfigError, match=r'rewards\[1\].judge.model = .*: its tokenizer is .*, that of this run'):
      look()
  with pytest.raises(ConfigError, match=r'rewards\[1\].judge.model.workdir'):
    check_tokenizers(session_of(ByteTokenizer()), judged_by(SavedRun(str(tmp_path))))
  with pytest.raises(ConfigError, match='objective.teacher = .*: its tokenizer is'):
    check_tokenizers(session_of(ByteTokenizer()), student(judge))


def test_another_vocabulary_is_refused(folder):
  tokenizer = make_tokenizer(hf.read_tokenizer(folder))
  with pytest.raises(ConfigError, match='264 logits.*the student has 272'):
    find_teacher(session_of(tokenizer, 272), student(HuggingFace(str(folder))))


def test_a_folder_without_a_run_is_refused(tmp_path):
  with pytest.raises(ConfigError, match=r'stage student.objective.teacher.workdir'):
    find_teacher(session_of(ByteTokenizer()), student(SavedRun(str(tmp_path))))


def test_a_stage_that_comes_later_is_refused():
  with pytest.raises(ConfigError, match=r'stages\[0\].objective.teacher'):
    Run(MODEL, (student(Params('later')), dataclasses.replace(student(Params('student')), name='later')))
  assert mix(Jsonl('a')).rows == student(Params('a')).objective.rows


@pytest.mark.slow
def test_a_run_distils_another_run_and_a_stage_of_its_own(tmp_path):
  """It goes on bitwise from its middle, and refuses another teacher then."""
  corpus = runs.write_corpus(tmp_path)
  text = tmp_path / 'text.jsonl'
  shutil.copy(corpus, text)
  runs.run(corpus, tmp_path / 'teacher')
  experiment = runs.tiny('distill', tmp_path)
  whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
  runs.run(text, whole, experiment=experiment)
  final = [record for record in read_metrics(whole) if record['kind'] == 'final']
  assert [record['stage'] for record in final] == ['student', 'again']
  assert final[0]['teacher_nll'] < final[0]['nll'] and final[1]['teacher_nll'] == pytest.approx(final[0]['nll'])
  shutil.copytree(whole, resumed)
  for gone in ('student/00000008', 'again'):
    shutil.rmtree(resumed / 'checkpoints' / gone)
  other = tmp_path / 'other'
  shutil.copytree(resumed, other)
  runs.run(text, resumed, experiment=experiment)
  assert runs.losses(resumed) == runs.losses(whole)
  shutil.rmtree(tmp_path / 'teacher/checkpoints/first/00000024')  # the one before it is the newest now
  assert 'distils another teacher' in runs.run(text, other, experiment=experiment, expect=1)
