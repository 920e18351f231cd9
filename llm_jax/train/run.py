"""A run: its stages one after the other. What is finished is skipped, what was interrupted goes on."""
import contextlib
import json
import logging
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence

import jax

from llm_jax import hf
from llm_jax.checkpoints.checkpoint import FOLDER_NAME
from llm_jax.config import schema
from llm_jax.config.errors import ConfigError, located
from llm_jax.config.run import Run
from llm_jax.config.stage import Stage
from llm_jax.data.dataset import Dataset, open_dataset, training_texts
from llm_jax.data.mixture_stats import Share, shares
from llm_jax.data.tokenizers.base import Tokenizer, check_vocabulary, load_tokenizer, make_tokenizer
from llm_jax.evaluation.needles import check_haystack
from llm_jax.modules.execution import Execution, dtype_of
from llm_jax.runtime import cpu, processes
from llm_jax.runtime.files import write_atomic
from llm_jax.runtime.hardware import total_peak_flops
from llm_jax.runtime.preemption import Preempted, Preemption
from llm_jax.sharding.check import check_divides, row_shards
from llm_jax.sharding.mesh import make_mesh
from llm_jax.tracking.lineage import code_digest, make_lineage, package_versions
from llm_jax.tracking.metrics import MetricsWriter, read_metrics
from llm_jax.tracking.numbers import shares_shown
from llm_jax.tracking.progress import say, task
from llm_jax.tracking.run_folder import Workdir
from llm_jax.train.build import stage_seed
from llm_jax.train.scores import StageData
from llm_jax.train.session import Session
from llm_jax.train.stage import StageRun, has_result


def train(run: Run, workdir: pathlib.Path, only: str | None = None,
          at_end: Callable[[pathlib.Path], None] = lambda workdir: None) -> None:
  """Runs or resumes the stages of `run` (or the one called `only`) in `workdir`.

  at_end: called by the primary process with the workdir when the stages have ended, however that was.
  Every process of a run calls this. Raises: ConfigError for what is wrong with the input, before anything compiles;
  Preempted when the machine asked to stop and all is saved; Diverged; CheckpointError.
  """
  with located('config'):
    for stage in run.stages:
      for phase in stage.phases_over(row_shards(run.model, run.mesh, jax.device_count())):
        check_divides(run.model, run.mesh, phase.batch_size, phase.seq_len, jax.device_count(), phase.microbatches,
                      stage.name)
      for seq_len in stage.needles.seq_lens if stage.needles else ():
        check_divides(run.model, run.mesh, phase.batch_size, seq_len, jax.device_count(), phase.microbatches,
                      f'{stage.name}.needles')
    mesh = make_mesh(run.mesh)
  execution = Execution(dtype_of(run.dtype), context_attention=run.context_attention)
  if jax.default_backend() == 'cpu' and run.context_attention == 'ring' and mesh.shape['context'] > 1:
    cpu.compile_anew()
  peak_flops = total_peak_flops(mesh.devices.flat, execution.dtype)  # may be measured, which no mesh must confine
  primary = jax.process_index() == 0
  folder = Workdir(workdir)
  processes.on_first(folder.prepare)
  processes.check_shared(workdir)
  processes.agree('config', repr(run))
  processes.agree('code', f'{code_digest()} {package_versions()} {execution.dtype}')
  with contextlib.ExitStack() as stack:
    processes.on_first(lambda: stack.enter_context(folder.lock()))
    processes.on_first(lambda: bind(folder, run))
    preemption = stack.enter_context(Preemption())
    stack.enter_context(jax.set_mesh(mesh))
    tokenizer = open_tokenizer(run, workdir)
    with located('config'):
      check_vocabulary(tokenizer, run.model.vocab_size)
    lineage = make_lineage()
    if primary:
      write_atomic(workdir / 'lineage.json', json.dumps(lineage, indent=2) + '\n')
    writer = stack.enter_context(MetricsWriter(workdir, primary=primary))
    session = Session(run, workdir, mesh, execution, tokenizer, writer, preemption, lineage, peak_flops, primary)
    todo = [stage for stage in run.stages if only in (None, stage.name) and not is_finished(session, stage)]
    check_starts(session, todo)
    # All data is opened before anything compiles: what is wrong with the last stage's is said now.
    needed = [stage for stage in run.stages if any(stage in (*run.ancestors(later), later) for later in todo)]
    data = {stage.name: open_data(session, stage) for stage in needed}
    processes.agree('data', repr([part and part.fingerprint for train, held_out in data.values()
                                for part in (*train.values(), held_out)]))
    for stage in todo:
      if stage.needles:
        with located(f'config.stages[{run.stages.index(stage)}]'):
          check_haystack(tokenizer, data[stage.name][1].haystack, stage.needles.seq_lens)
    for stage in todo if primary else ():
      warn_of_seen(run, stage, data)
      print_shares(stage.name, shares(data[stage.name][0], stage.phases, stage.samples_after(stage.steps)))
    try:
      for stage in todo:
        if preemption.requested():
          raise Preempted(f'before stage {stage.name}')
        StageRun(session, stage, data).train()
    finally:
      if primary:
        at_end(workdir)
    processes.barrier('done')  # a process that leaves early ends the others


def bind(folder: Workdir, run: Run) -> None:
  """Ties the folder to the run's configuration, which begins with the first checkpoint: until then nothing is lost."""
  if not any(FOLDER_NAME.fullmatch(path.name) for path in folder.path.glob('checkpoints/*/*')):
    reached = max((r['step'] for r in read_metrics(folder.path) if r['kind'] == 'train'), default=0)
    if run.checkpoints.every and reached > 2 * run.checkpoints.every:
      raise ConfigError('workdir', str(folder.path), f'its metrics reach step {reached} and its checkpoints are gone: '
                        'bring them back, or name another workdir')
    (folder.path / 'config.json').unlink(missing_ok=True)
    shutil.rmtree(folder.path / 'tokenizer', ignore_errors=True)
  folder.bind(schema.to_json(run))


def is_finished(session: Session, stage: Stage) -> bool:
  """Whether the stage's result is written and its last checkpoint is there, or was: once a later stage that comes from
  it has checkpoints of its own, those of the stage may go."""
  recorded = processes.on_first(lambda: has_result(session.workdir, stage.name))
  newest = session.store(stage.name).latest_valid() if recorded else None
  finished = newest is not None and newest.metadata['final']
  if recorded and newest is None:
    later = [other.name for other in session.run.stages if stage in session.run.ancestors(other)]
    finished = processes.on_first(lambda: any(session.store(name).steps() for name in later))
  if finished and session.primary:
    say(f'{stage.name}: finished before, skipped')
  return finished


def check_starts(session: Session, todo: list[Stage]) -> None:
  """Refuses, before any stage runs, one that begins with what is not there and will not be made before it."""
  for stage in todo:
    if processes.on_first(lambda stage=stage: bool(session.store(stage.name).steps())):
      continue  # it has begun
    if stage.init[0] == 'hf':
      with located('config'):
        hf.check_pretrained(stage.init[1], session.run.model)
    for parent in [name for name in stage.parents if name not in [other.name for other in todo]]:
      newest = session.store(parent).latest_valid()
      if newest is None or not newest.metadata['final']:
        lost = newest is None and processes.on_first(lambda name=parent: has_result(session.workdir, name))
        raise ConfigError('--stage', stage.name, f'it starts from stage {parent}, which has ' + (
          'lost its checkpoints: bring them back, or train it again in another workdir' if lost else
          'not finished: run that first'))


def open_tokenizer(run: Run, workdir: pathlib.Path) -> Tokenizer:
  """The run's tokenizer: made once (a trained one on the first stage's training text) and kept in the workdir."""
  folder = workdir / 'tokenizer'

  def make() -> None:
    if not folder.exists():
      make_tokenizer(run.tokenizer, lambda: training_texts(run.stages[0].data)).save(folder)

  with located('config.stages[0]'):
    processes.on_first(make)
  return load_tokenizer(folder)


def open_data(session: Session, stage: Stage) -> StageData:
  """The stage's training data by the seq_lens that it has, and its held-out data, in the last of them."""
  seq_lens = dict.fromkeys(phase.seq_len for phase in stage.phases)
  return ({length: open_split(session, stage, 'train', length) for length in seq_lens},
          open_split(session, stage, 'validation', stage.phases[-1].seq_len))


def open_split(session: Session, stage: Stage, split: str, length: int) -> Dataset | None:
  """One split in rows of `length` tokens, tokenised if no run has done that before."""
  with contextlib.ExitStack() as stack:
    shown, advance = 0, None

    def progress(done: int, total: int) -> None:
      nonlocal shown, advance
      if advance is None:
        advance = stack.enter_context(task(f'tokenise {split}', total, unit='B', enabled=session.primary))
      advance(done - shown)
      shown = done

    data = stage.data if split == 'train' else stage.validation_data
    with located(f'config.stages[{session.run.stages.index(stage)}]'):
      return open_dataset(data, session.tokenizer, seq_len=length, seed=stage_seed(session.run, stage),
                          split=split, steps=stage.steps, phases=stage.phases, progress=progress, name=stage.name)


def warn_of_seen(run: Run, stage: Stage, data: Mapping[str, StageData]) -> None:
  """Says where a stage is scored on what it, or a stage that it comes from, is trained on."""
  held_out = data[stage.name][1]
  for each in [each for each in (*run.ancestors(stage), stage) if each.steps and held_out]:
    for line in held_out.seen_in(data[each.name][0][each.seq_len]):
      logging.warning('%s: %s, on which %s is trained: its held-out numbers are not of unseen text. Let both name the '
                      'files by the same path, with the same held_out', stage.name, line, each.name)


def print_shares(stage: str, found: Sequence[Share]) -> None:
  """What the stage will read, a line a source."""
  rows = [(f'{stage} reads', 'share', 'epochs', 'size', 'tokens')]
  rows += [(f'  {row.source}', *shares_shown(row._asdict())) for row in found]
  for name, *numbers in rows if found else ():
    say(f'{name:<40}' + ''.join(f'{number:>12}' for number in numbers))
