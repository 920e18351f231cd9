"""What a stage learns from where an earlier stage makes it: answers, sampled when the stage begins and kept in the
run's folder. A run that is killed while it samples goes on after the last part that is on disk, and makes the same."""
import dataclasses
import functools
import hashlib
import json

import jax

from llm_jax.adapters.base import manifest_digest
from llm_jax.checkpoints.checkpoint import SavedCheckpoint
from llm_jax.config import schema
from llm_jax.config.data import Data, Weighted
from llm_jax.config.revisions import Revisions
from llm_jax.config.samples import (
  SOFT_LABEL,
  BestOf,
  JudgedPairs,
  RankedPairs,
  RevisedAnswers,
  SampledSource,
  Samples,
)
from llm_jax.config.sources import Conversations, Preferences, Source
from llm_jax.config.stage import Stage
from llm_jax.data.prompts import Prompt, PromptSet, open_prompts
from llm_jax.objectives.frozen import Frozen
from llm_jax.rollout.model_rewards import make_model_scorer
from llm_jax.rollout.rewards import ModelScorer
from llm_jax.rollout.sample_files import SampleFiles
from llm_jax.rollout.sampling import Sampler
from llm_jax.runtime import activity, processes
from llm_jax.runtime.errors import CheckpointError
from llm_jax.runtime.time_use import Use
from llm_jax.sharding.rules import batch_sharding, placed
from llm_jax.tracking.task import task
from llm_jax.tracking.terminal import say
from llm_jax.train.frozen_models import FoundModels, find_reward_models
from llm_jax.train.rollout import DecodingCopy
from llm_jax.train.sample_parts import WritePart, revise_part, score_part
from llm_jax.train.session import Session

FOLDER = 'samples'
FORMAT = 1  # raise it when equal settings give other answers


# ---------------------------------------------------------------------------------------------- whether they are there
def are_there(session: Session, stage: Stage) -> bool:
  """Whether all that earlier stages make for this one is made."""
  return all([is_made(session, samples) for samples in stage.samples])


def is_made(session: Session, samples: Samples | Revisions) -> bool:
  """Whether the samples are there, and are those of the model that the stage has now. Of a stage that is to be trained
  further they are not; where its checkpoints are gone, those that are there count. All processes ask together."""
  manifest = processes.on_first(lambda: files_of(session, samples).manifest)
  if manifest is None:
    return False
  checkpoint = session.store(samples.stage).latest_valid()
  if checkpoint is None:
    return True
  return checkpoint.metadata.final and manifest['model'] == manifest_digest(checkpoint)


def files_of(session: Session, samples: Samples | Revisions) -> SampleFiles:
  """Where the samples are, or will be."""
  made_of = {'samples': schema.to_json(samples), 'seed': session.run.seed, 'tokenizer': session.tokenizer.fingerprint,
             'dtype': session.execution.dtype, 'format': FORMAT}
  name = f'{samples.stage}-{digest(made_of)[:8]}'
  return SampleFiles(session.workdir / FOLDER / name, made_of)


def digest(made_of: object) -> str:
  return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def with_rows(session: Session, data: Data) -> Data:
  """The data with the files in the place of what is chosen of samples, which are there.

  Raises:
    ConfigError: nothing is chosen of them.
    FileError: the samples are damaged.
  """
  return dataclasses.replace(data, sources=tuple(
    dataclasses.replace(part, source=_written(session, part.source)) for part in data.sources))


def _written(session: Session, source: Source) -> Source:
  if not isinstance(source, SampledSource):
    return source
  files = files_of(session, source.samples)
  path = processes.on_first(lambda: str(files.write_rows(source)))
  match source:
    case BestOf():
      return Conversations(path, source.chat_template, val_fraction=source.val_fraction)
    case RankedPairs():
      return Preferences(path, source.chat_template, source.mask_formatting, source.val_fraction)
    case JudgedPairs():
      return Preferences(path, source.chat_template, source.mask_formatting, source.val_fraction, soft_label=SOFT_LABEL)
    case RevisedAnswers():
      return Conversations(path, source.chat_template, val_fraction=source.val_fraction)


# ---------------------------------------------------------------------------------------------- making them
def make_samples(session: Session, stage: Stage, samples: Samples | Revisions) -> None:
  """Makes what is not there yet.   stage: the one that is to learn from them.

  Raises:
    CheckpointError: the stage that answers has not finished, or has lost its checkpoints.
    RewardError: a reward that is no number; what was sampled before is kept.
  """
  if is_made(session, samples):
    return
  activity.begin(f'samples what stage {stage.name} learns from', use=Use.DATA)
  checkpoint = session.store(samples.stage).latest_valid()
  if checkpoint is None or not checkpoint.metadata.final:
    raise CheckpointError(f'stage {stage.name} learns from answers of stage {samples.stage}, which has not finished or '
                          'has lost its checkpoints: run it first, or bring them back')
  files = files_of(session, samples)
  model = manifest_digest(checkpoint)
  processes.on_first(lambda: files.begin(model))
  prompts = open_prompts(Data((Weighted(samples.prompts),)), session.tokenizer, 'train', seed=seed_of(files),
                         longest=stage.seq_len + 1 - samples.max_new_tokens)
  assert prompts is not None
  parts = parts_of(samples, prompts)
  missing = processes.on_first(lambda: [number for number in range(len(parts)) if not files.has_part(number)])
  if missing:
    write = part_writer(session, stage, samples, prompts, files)
    sample_parts(session, samples, checkpoint, prompts.stop_tokens, files, {k: parts[k] for k in missing}, write)
  processes.on_first(lambda: files.finish(len(parts)))
  if session.primary:
    say(f'{stage.name}: {summary(samples, files)}')


def parts_of(samples: Samples | Revisions, prompts: PromptSet) -> list[list[Prompt]]:
  """The prompts that are asked, as many at a time as are sampled together."""
  count = samples.count or len(prompts)
  at_once = samples.rows_at_once // samples.answers
  return [[prompts.at(number) for number in range(first, min(first + at_once, count))]
          for first in range(0, count, at_once)]


def model_scorer(session: Session, stage: Stage, samples: Samples, prompts: PromptSet) -> ModelScorer:
  """What asks the models among the rewards, which are read now."""
  found = find_reward_models(session, stage, samples)
  frozen = FoundModels(None, found).beside(Frozen())
  place = functools.partial(placed, sharding=batch_sharding(session.mesh))
  return make_model_scorer(samples, frozen, prompts, samples.answers, stage.batch_size // stage.microbatches,
                           samples.lengths(stage.seq_len), place)


def part_writer(session: Session, stage: Stage, samples: Samples | Revisions, prompts: PromptSet, files: SampleFiles
                ) -> WritePart:
  match samples:
    case Samples():
      return score_part(samples, model_scorer(session, stage, samples, prompts), files)
    case Revisions():
      return revise_part(samples, session.tokenizer, seed_of(files), files)


def sample_parts(session: Session, samples: Samples | Revisions, checkpoint: SavedCheckpoint,
                 stop_tokens: tuple[int, ...], files: SampleFiles, parts: dict[int, list[Prompt]], write: WritePart
                 ) -> None:
  """What is drawn in a part depends on its number and the settings alone."""
  parent = next(each for each in session.run.stages if each.name == samples.stage)
  params = session.saved_models().whole(parent, checkpoint)
  params = DecodingCopy(None, session.execution.dtype, session.mesh)(params, Frozen())
  sampler = Sampler(session.run.model_of(parent), session.execution, session.tokenizer, stop_tokens,
                    samples.max_new_tokens)
  draw = functools.partial(sampler.answers, params)
  key = jax.random.key(seed_of(files))
  with task(f'sample answers of {samples.stage}', len(parts), enabled=session.primary) as advance:
    for number, prompts in parts.items():
      activity.beat()
      write(number, prompts, draw, jax.random.fold_in(key, number))
      advance(1)


def seed_of(files: SampleFiles) -> int:
  """Other settings draw other numbers, and rounds of the same prompts ask them in another order."""
  return int(digest(files.made_of)[:7], 16)


def summary(samples: Samples | Revisions, files: SampleFiles) -> str:
  found = files.manifest
  assert found is not None
  if isinstance(samples, Revisions):
    return (f'{samples.revisions} revisions of an answer of {samples.stage} to each of {found["prompts"]:,} prompts: '
            f'{found["kept"]:.0%} kept, {found["changed"]:.0%} of the answers changed, {found["cut_off"]:.0%} cut off')
  return (f'{samples.answers} answers of {samples.stage} to each of {found["prompts"]:,} prompts: reward '
          f'{found["reward"]:.3g}, of the best of each {found["reward_of_best"]:.3g}, {found["cut_off"]:.0%} cut off')
