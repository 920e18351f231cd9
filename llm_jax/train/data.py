"""The data of a run's stages: opened, checked, and told to a person."""
import functools
import logging
from collections.abc import Iterable, Mapping, Sequence

from llm_jax.config.data import Data, Weighted
from llm_jax.config.errors import ConfigError, located, require
from llm_jax.config.revisions import Revisions
from llm_jax.config.run import Run
from llm_jax.config.samples import Samples
from llm_jax.config.stage import Stage
from llm_jax.data.dataset import Dataset, open_dataset
from llm_jax.data.mixture_stats import SourceStats, mixture_stats
from llm_jax.data.prompts import PromptSet, open_prompts
from llm_jax.data.sources.documents import Split
from llm_jax.data.stage_data import StageData
from llm_jax.rollout.model_rewards import check_judges
from llm_jax.rollout.rewards import Rewards
from llm_jax.runtime import processes
from llm_jax.tracking.numbers import mixture_cells
from llm_jax.tracking.task import ByteProgress
from llm_jax.tracking.terminal import say
from llm_jax.train.build import stage_seed
from llm_jax.train.evaluations import make_evaluations
from llm_jax.train.samples import are_there, make_samples, with_rows
from llm_jax.train.session import Session


# ---------------------------------------------------------------------------------------------- opening it
def open_data(session: Session, stages: Sequence[Stage]) -> dict[str, StageData]:
  """The data of the stages and of those that they come from, by name. All of it is opened before anything compiles, so
  that what is wrong with the last stage's is said at once; but what a stage of the run is still to make is left out."""
  for stage in stages:
    check_samples(session, stage)
  return _open_all(session, [stage for stage in with_ancestors(session.run, stages) if are_there(session, stage)])


def open_made(session: Session, stage: Stage, data: dict[str, StageData]) -> None:
  """Adds what is left out in `data` of the stage and of those that it comes from; what they are to learn from is
  sampled first, unless it is there."""
  missing = [each for each in with_ancestors(session.run, [stage]) if each.name not in data]
  for each in missing:
    for samples in each.samples:
      make_samples(session, each, samples)
  if missing:
    data |= _open_all(session, missing)


def with_ancestors(run: Run, stages: Iterable[Stage]) -> list[Stage]:
  """The stages and those that they come from, in the order of the run."""
  needed: set[str] = set()
  for stage in stages:
    needed.update(each.name for each in (*run.ancestors(stage), stage))
  return [stage for stage in run.stages if stage.name in needed]


def _open_all(session: Session, stages: Sequence[Stage]) -> dict[str, StageData]:
  data = {stage.name: open_stage_data(session, stage) for stage in stages}
  fingerprints = []
  for opened in data.values():
    fingerprints += opened.fingerprints
  processes.agree('data', repr(fingerprints))
  return data


def open_stage_data(session: Session, stage: Stage) -> StageData:
  """The data of a stage; its samples are there."""
  if stage.rollout is not None:
    return open_stage_prompts(session, stage)
  train = {}
  for seq_len in dict.fromkeys(phase.seq_len for phase in stage.phases):
    dataset = open_split(session, stage, 'train', seq_len)
    if dataset is not None:  # a training split is never empty
      train[seq_len] = dataset
  validation = open_split(session, stage, 'validation', stage.phases[-1].seq_len)
  if not isinstance(stage.answering, Samples):
    return StageData(train, validation)
  prompts = Data((Weighted(stage.answering.prompts),))
  return StageData(train, validation, None, open_stage_split(session, stage, prompts, 'validation'))


def open_stage_prompts(session: Session, stage: Stage) -> StageData:
  """The prompts of a stage that learns from its own answers. Its rewards are looked at too, for they may be files."""
  assert stage.rollout is not None
  with located(where(session.run, stage)):
    Rewards(stage.rollout)
    check_judges(stage.rollout, session.tokenizer, 'rollout')
  train = open_stage_split(session, stage, stage.data, 'train')
  held_out = open_stage_split(session, stage, stage.validation_data, 'validation')
  return StageData({}, None, train, held_out, open_pretraining(session, stage))


def open_pretraining(session: Session, stage: Stage) -> Dataset | None:
  """The text that is learnt beside the answers of a rollout, or None."""
  if stage.pretraining_loss is None:
    return None
  place = f'{where(session.run, stage)}.pretraining_loss'
  return open_rows(session, stage, stage.pretraining_loss.data, 'train', stage.seq_len, place)


def open_stage_split(session: Session, stage: Stage, prompts: Data, split: Split) -> PromptSet | None:
  """Prompts that the stage's answers are sampled to."""
  assert stage.answering is not None
  return open_all_prompts(session, stage, prompts, split, stage.answering.max_new_tokens)


def open_all_prompts(session: Session, stage: Stage, prompts: Data, split: Split, max_new_tokens: int
                     ) -> PromptSet | None:
  """Prompts, each of which leaves room for an answer in the stage's rows."""
  with located(where(session.run, stage)):
    return open_prompts(prompts, session.tokenizer, split, seed=stage_seed(session.run, stage),
                        longest=stage.seq_len + 1 - max_new_tokens)


def open_split(session: Session, stage: Stage, split: Split, seq_len: int) -> Dataset | None:
  """One split in rows of `seq_len` tokens, tokenised if no run has done that before."""
  data = with_rows(session, stage.data if split == 'train' else stage.validation_data)
  return open_rows(session, stage, data, split, seq_len, where(session.run, stage))


def open_rows(session: Session, stage: Stage, data: Data, split: Split, seq_len: int, place: str) -> Dataset | None:
  """The rows of a split of data whose files are there.   place: of the data's owner in the configuration."""
  show_progress = functools.partial(ByteProgress, f'tokenise {split}', enabled=session.primary)
  with located(place):
    return open_dataset(data, session.tokenizer, seq_len=seq_len, seed=stage_seed(session.run, stage), split=split,
                        steps=stage.steps, phases=stage.phases, show_progress=show_progress, name=stage.name,
                        vocab_size=session.run.model.vocab_size)


def where(run: Run, stage: Stage) -> str:
  """The place of a stage in the configuration."""
  return f'config.stages[{run.stages.index(stage)}]'


# ---------------------------------------------------------------------------------------------- checking it
def check_samples(session: Session, stage: Stage) -> None:
  """Refuses prompts and rewards, of what is still to be sampled for a stage, that cannot be read."""
  for samples in stage.samples:
    if isinstance(samples, Samples):
      with located(where(session.run, stage)):
        Rewards(samples)
        check_judges(samples, session.tokenizer, 'samples')
    prompts = open_all_prompts(session, stage, Data((Weighted(samples.prompts),)), 'train', samples.max_new_tokens)
    if isinstance(samples, Revisions) and prompts is not None:
      with located(where(session.run, stage)):
        check_room(session, samples, prompts)


def check_room(session: Session, samples: Revisions, prompts: PromptSet) -> None:
  """Refuses revisions that the learned positions of the model cannot hold: of a conversation with an answer, a critique
  and a revision."""
  limit = session.run.model.max_length
  if limit is None:
    return
  requests = [(principle.critique or '') + principle.revision for principle in samples.principles]
  asked = max(len(session.tokenizer.encode(request)) for request in requests)
  longest = max(len(prompt.ids) for prompt in prompts.first(len(prompts)))
  length = longest + asked + 3 * samples.max_new_tokens
  require(length <= limit, 'samples.max_new_tokens', samples.max_new_tokens,
          f'a prompt with answer, critique and revision may have {length} tokens, and the model has {limit} learned '
          'positions: use less')


def check_unchanged_data(run: Run, stage: Stage, data: StageData) -> None:
  """Refuses a stage whose files have changed since the run began, when they were tokenised: a resumed run would find
  other data than the stage was trained on.

  Raises:
    ConfigError: on every process, naming the files.
  """
  def check() -> None:
    changed = data.changed_files()
    if changed:
      raise ConfigError(f'config.stages[{run.stages.index(stage)}].data', ', '.join(sorted(changed)),
                        f'changed since the run began: start the same command again, which reads it anew for stage '
                        f'{stage.name}')

  processes.on_first(check)


def check_evaluations(session: Session, stages: list[Stage], data: Mapping[str, StageData]) -> None:
  """Refuses data that a stage's evaluations cannot use."""
  for stage in stages:
    number = session.run.stages.index(stage)
    for evaluation in make_evaluations(session, stage, data):
      place = stage.evals.index(evaluation.config)
      with located(f'config.stages[{number}].evals[{place}]'):
        evaluation.check()


def print_data(run: Run, stages: list[Stage], data: Mapping[str, StageData]) -> None:
  """What every stage will read, and a warning where it is scored on what it was trained on."""
  for stage in stages:
    warn_of_seen(run, stage, data)
    print_mixture(stage.name, mixture_stats(data[stage.name].train, stage.phases, stage.samples_after(stage.steps)))


def warn_of_seen(run: Run, stage: Stage, data: Mapping[str, StageData]) -> None:
  """Says where a stage is scored on what it, or a stage that it comes from, is trained on."""
  validation = data[stage.name].validation
  if validation is None:
    return
  for trained in (*run.ancestors(stage), stage):
    is_made_later = trained.name not in data  # its rows, of answers to prompts
    if trained.steps == 0 or trained.rollout is not None or is_made_later:
      continue
    for line in validation.seen_in(data[trained.name].train[trained.seq_len]):
      logging.warning('%s: %s, on which %s is trained: its held-out numbers are not of unseen text. Let both name the '
                      'files by the same path, with the same val_fraction', stage.name, line, trained.name)


def print_mixture(stage: str, rows: Sequence[SourceStats]) -> None:
  """What the stage will read, a line a source."""
  if not rows:
    return
  lines = [(f'{stage} reads', 'share', 'epochs', 'size', 'tokens')]
  lines += [(f'  {row.source}', *mixture_cells(row.to_record())) for row in rows]
  for name, *numbers in lines:
    say(f'{name:<40}' + ''.join(f'{number:>12}' for number in numbers))
