"""Ids that a teacher draws for all rows of a stage before its first step."""
import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from llm_jax.config.errors import located
from llm_jax.config.objectives import Distillation
from llm_jax.config.stage import Stage
from llm_jax.config.teachers import TeacherIds
from llm_jax.data.batches import Placement
from llm_jax.data.dataset import Dataset
from llm_jax.data.stage_data import StageData
from llm_jax.data.teacher_ids import TeacherIdStore, store_of
from llm_jax.decode.request import fetch
from llm_jax.objectives.kept_distillation import draw_ids
from llm_jax.runtime import activity, processes
from llm_jax.runtime.time_use import Use
from llm_jax.sharding.rules import batch_sharding
from llm_jax.tracking.task import task
from llm_jax.train.build import stage_seed
from llm_jax.train.frozen_models import FoundModel, find_model
from llm_jax.train.session import Session


def with_teacher_ids(session: Session, stage: Stage, data: StageData) -> StageData:
  """The stage's data, its training rows with the ids that its teacher draws, which are drawn now where the cache lacks
  them; of other stages the data as it is.

  Raises:
    CheckpointError, ConfigError: there is no such teacher.
  """
  objective = stage.objective
  if not isinstance(objective, Distillation) or objective.teacher_ids is None:
    return data
  with located(f'stage {stage.name}.objective.teacher'):
    teacher = find_model(session, objective.teacher_ids.teacher)
  [(seq_len, dataset)] = data.train.items()
  store = _store(session, stage, dataset, objective.teacher_ids, teacher)
  if not processes.on_first(store.is_whole):
    activity.begin(f'draws ids of the teacher of stage {stage.name}', use=Use.DATA)
    _draw(session, stage, dataset, store, teacher)
  return dataclasses.replace(data, train={seq_len: dataset.with_teacher_ids(store)})


def _store(session: Session, stage: Stage, dataset: Dataset, config: TeacherIds, teacher: FoundModel
           ) -> TeacherIdStore:
  num_samples = stage.samples_after(stage.steps)
  made_of = {'rows': dataset.fingerprint, 'samples': num_samples, 'teacher': teacher.digest, 'count': config.count,
             'seed': stage_seed(session.run, stage), 'dtype': session.execution.dtype}
  places = {row: place for place, row in enumerate(_first_samples(dataset, num_samples))}
  return store_of(made_of, places, stage.batch_size, dataset.seq_len, config.count)


def _first_samples(dataset: Dataset, num_samples: int) -> dict[tuple[int, int], int]:
  """Each row that is read -> the first sample that is that row, in their order."""
  found: dict[tuple[int, int], int] = {}
  for sample in range(num_samples):
    found.setdefault(dataset.locate(sample), sample)
  return found


def _draw(session: Session, stage: Stage, dataset: Dataset, store: TeacherIdStore, teacher: FoundModel) -> None:
  """What is drawn for a part depends on its number, the seed and the teacher alone."""
  placement = Placement(dataset, stage.batch_size, batch_sharding(session.mesh))
  samples = np.array([*_first_samples(dataset, stage.samples_after(stage.steps)).values()])
  samples = np.append(samples, np.repeat(samples[-1:], -len(samples) % stage.batch_size))
  model = teacher.read()
  draw = jax.jit(functools.partial(draw_ids, count=store.count))
  key = jax.random.key(stage_seed(session.run, stage))
  missing = processes.on_first(store.missing)
  with task('draw ids of the teacher', len(missing), enabled=session.primary) as advance:
    for part in missing:
      activity.beat()
      rows = samples[part * stage.batch_size:(part + 1) * stage.batch_size]
      batch: Any = placement.place(placement.read_rows(rows))
      ids = fetch(draw(model, batch, key=jax.random.fold_in(key, part)))
      processes.on_first(functools.partial(store.write, part, ids, session.run.model.vocab_size))
      advance(1)
  processes.on_first(store.finish)
