"""Ids that a teacher draws once for the rows of a stage."""
import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.batch import LanguageModelBatch
from llm_jax.config import presets
from llm_jax.config.errors import ConfigError
from llm_jax.config.experiment import Constant, Distillation, Jsonl, Params, Ramp, Run, SavedRun, TeacherIds, stage
from llm_jax.config.run import Mesh
from llm_jax.data.batches import TrainSource, check_same_data
from llm_jax.data.dataset import open_dataset
from llm_jax.data.stage_data import StageData
from llm_jax.data.teacher_ids import TeacherIdStore
from llm_jax.data.tokenizers.byte_level import ByteTokenizer
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.distillation import DistillationObjective
from llm_jax.objectives.frozen import Frozen, FrozenModel
from llm_jax.objectives.kept_distillation import KeptDistillationObjective, draw_ids
from llm_jax.sharding.mesh import make_mesh
from llm_jax.sharding.rules import batch_sharding
from llm_jax.train import teacher_ids
from llm_jax.train.frozen_models import FoundModel
from llm_jax.train.teacher_ids import with_teacher_ids

MODEL = presets.llama(d_model=16, num_layers=1, num_heads=2, d_ff=32, vocab_size=257)
COUNT, BATCH, STEPS = 3, 4, 9
OBJECTIVE = Distillation(TeacherIds(SavedRun('teacher'), COUNT))


def make_model(scale):
  transformer = Transformer(MODEL, Execution(unroll=False, kernels='xla'))
  params = transformer.init(jax.random.key(1), jnp.zeros((1, 1), jnp.int32))['params']
  return FrozenModel(jax.tree.map(lambda p: scale * p, params), transformer)


@pytest.fixture
def made(tmp_path, monkeypatch):
  """A session, a stage that reads its rows more than once, and its data."""
  monkeypatch.setenv('LLM_JAX_CACHE', str(tmp_path / 'cache'))
  path = tmp_path / 'text.jsonl'
  path.write_text(''.join(json.dumps({'text': f'{i} ' * 40}) + '\n' for i in range(12)))
  student = stage('student', Jsonl(str(path), val_fraction=0.0), steps=STEPS, seq_len=64, batch_size=BATCH,
                  learning_rate=Constant(1e-3), objective=OBJECTIVE)
  model = make_model(4.0)
  found = FoundModel(model, lambda: model, 'teacher')
  monkeypatch.setattr(teacher_ids, 'find_model', lambda session, teacher: found)
  mesh = make_mesh(Mesh(data=1), jax.devices()[:1])
  session = types.SimpleNamespace(run=Run(MODEL, (student,)), mesh=mesh, tokenizer=ByteTokenizer(), primary=True,
                                  execution=Execution('float32'))
  dataset = open_dataset(student.data, ByteTokenizer(), seq_len=64, seed=0, split='train', steps=STEPS,
                         phases=student.phases)
  return session, student, StageData({64: dataset}, None), model


def test_ids_are_drawn_from_the_teacher(made):
  """Every row has the same ids whenever it is read; over all of them their shares are the teacher's probabilities."""
  session, student, data, model = made
  dataset = with_teacher_ids(session, student, data).train[64]
  assert dataset.rows_per_epoch < STEPS * BATCH
  seen = {}
  for sample in range(STEPS * BATCH):
    row = dataset.row(sample)
    assert row['teacher_ids'].shape == (64, COUNT)
    assert np.array_equal(seen.setdefault(dataset.locate(sample), row['teacher_ids']), row['teacher_ids'])
  assert len({ids.tobytes() for ids in seen.values()}) == len(seen)
  source = TrainSource(dataset, BATCH, batch_sharding(session.mesh))
  log_prob, expected = 0.0, 0.0
  for _ in range(STEPS):
    batch = source.next()
    logits = model.model.apply({'params': model.params}, batch.tokens, batch.positions, batch.segment_ids)
    log_p = np.asarray(jax.nn.log_softmax(logits))
    log_prob += np.take_along_axis(log_p, np.asarray(batch.teacher_ids), -1).mean()
    expected += (np.exp(log_p) * log_p).sum(-1).mean()
  assert log_prob / STEPS == pytest.approx(expected / STEPS, abs=0.05)  # some 6,900 draws
  shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), source.abstract())
  assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), batch)


def test_what_is_there_is_not_drawn_again(made, monkeypatch):
  """A process that was stopped goes on after the last part, with the same ids; other runs find them."""
  session, student, data, _ = made
  write, written = TeacherIdStore.write, []

  def stopping(self, part, *rest):
    if len(written) == 2:
      raise KeyboardInterrupt
    write(self, part, *rest)
    written.append(part)

  with monkeypatch.context() as patched:
    patched.setattr(TeacherIdStore, 'write', stopping)
    with pytest.raises(KeyboardInterrupt):
      with_teacher_ids(session, student, data)
  first = with_teacher_ids(session, student, data).train[64]
  monkeypatch.setattr(TeacherIdStore, 'write', None)
  again = with_teacher_ids(session, student, data).train[64]
  for sample in range(STEPS * BATCH):
    np.testing.assert_array_equal(first.row(sample)['teacher_ids'], again.row(sample)['teacher_ids'])
  assert written == [0, 1]


def test_ids_of_another_teacher_are_others(made, monkeypatch):
  session, student, data, model = made
  first = with_teacher_ids(session, student, data).train[64]
  monkeypatch.setattr(teacher_ids, 'find_model', lambda session, teacher: FoundModel(model, lambda: model, 'other'))
  other = with_teacher_ids(session, student, data).train[64]
  with pytest.raises(ConfigError, match='teacher_ids = '):
    check_same_data(first.fingerprint, other.fingerprint)


def test_the_loss_is_that_of_ids_drawn_at_the_step(made):
  """Loss and gradients on kept ids are those of the objective that asks the teacher, on the same ids."""
  _, _, _, model = made
  rng = np.random.default_rng(0)
  ids = rng.integers(0, 257, (2, 33)).astype(np.int32)
  places = np.broadcast_to(np.arange(32, dtype=np.int32), (2, 32))
  weights = (rng.random((2, 32)) < 0.7).astype(np.float32)
  batch = LanguageModelBatch(ids[:, :-1], ids[:, 1:], weights, places, np.ones_like(places))
  student, key = make_model(2.0), jax.random.key(4)
  drawn = draw_ids(model, batch, COUNT, jax.random.fold_in(key, 1))
  kept = KeptDistillationObjective(student.model, OBJECTIVE)
  asked = DistillationObjective(student.model, dataclasses.replace(OBJECTIVE, teacher=Params('x'), sampled=COUNT))

  def total(objective, frozen, batch):
    def of_params(params):
      loss = objective(params, frozen, batch, key)
      return loss.total, loss
    return jax.value_and_grad(of_params, has_aux=True)(student.params)

  (found, loss), gradient = total(kept, Frozen(), dataclasses.replace(batch, teacher_ids=drawn))
  (want, want_loss), want_gradient = total(asked, Frozen(teacher=model), batch)
  assert float(found) == pytest.approx(float(want), rel=1e-6)
  for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(want_gradient), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(jnp.abs(b).max())))
  for name in ('divergence', 'nll', 'accuracy'):
    assert float(loss.metrics[name]) == pytest.approx(float(want_loss.metrics[name]), rel=1e-6)
  without = kept(student.params, Frozen(), batch, None)
  assert float(without.total) == pytest.approx(float(loss.metrics['nll']), rel=1e-6)
  assert 'divergence' not in without.metrics


@pytest.mark.parametrize('fields, message', [
  (dict(objective=Distillation(TeacherIds(Params('later')))), 'objective.teacher'),
  (dict(ramp=(Ramp(tokens=512, batch_size=8, seq_len=32),)), 'ids are drawn for rows of one length'),
])
def test_refused(fields, message, made):
  _, student, _, _ = made
  with pytest.raises(ConfigError, match=message):
    Run(MODEL, (dataclasses.replace(student, **fields),))


@pytest.mark.parametrize('fields', [dict(divergence=0.5), dict(temperature=2.0), dict(sampled=4)])
def test_only_for_the_plain_divergence(fields):
  with pytest.raises(ConfigError, match='ids are drawn for divergence=0 and temperature=1 alone'):
    Distillation(TeacherIds(SavedRun('teacher')), **fields)
