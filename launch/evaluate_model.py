"""A run's model for `launch.evaluate`: its texts are looked at first, its parameters read only then."""
import dataclasses
import pathlib
from typing import Any

import jax

from launch.evaluate_flags import HF, EvaluateFlags
from launch.evaluate_strategy import OpenedStrategy, Prompted, open_strategy
from launch.sampler import brought_template, text_ends
from launch.saved_models import check_tokenizer, find_checkpoint, read_model
from llm_jax.checkpoints.checkpoint import SavedCheckpoint
from llm_jax.config.errors import require
from llm_jax.config.run import Mesh, Run
from llm_jax.config.stage import Stage
from llm_jax.data.tokenizers.base import load_tokenizer
from llm_jax.data.tokenizers.chat_templates import check_template, end_of_turn
from llm_jax.harness.index import Index, scan
from llm_jax.harness.model import Reader
from llm_jax.harness.run import Asking, Prepared, prepare, run
from llm_jax.harness.tasks import TaskSource
from llm_jax.harness.text import HarnessText
from llm_jax.modules.execution import Execution, dtype_of
from llm_jax.sharding.mesh import make_mesh
from llm_jax.sharding.rules import param_shardings
from llm_jax.tracking.run_config import read_config

EXPORTED_LENGTH = 2_048  # tokens of a model whose positions state no length, as `launch.convert` exports it


@dataclasses.dataclass(frozen=True)
class Saved:
  """A checkpoint of a run."""
  workdir: pathlib.Path
  run: Run
  stage: Stage
  checkpoint: SavedCheckpoint

  @classmethod
  def find(cls, flags: EvaluateFlags, workdir: pathlib.Path) -> 'Saved':
    """Raises ConfigError for a folder that is no run, CheckpointError as `find_checkpoint` does."""
    run = read_config(workdir, '--checkpoint')
    return cls(workdir, run, *find_checkpoint('checkpoint', workdir, run, flags.stage, flags.step))

  def read(self, flags: EvaluateFlags, text: HarnessText) -> Reader:
    """The parameters on the devices."""
    params = on_devices(read_model(self.run, self.workdir, self.stage, self.checkpoint))
    ends = text_ends(self.workdir / 'tokenizer', text.tokenizer)
    if text.template is not None:
      ends = tuple({*end_of_turn(text.template, text.tokenizer), *ends})
    execution = Execution(dtype_of(flags.dtype or self.run.dtype))
    return Reader(self.run.model_of(self.stage), params, execution, ends, flags.batch_size)


@dataclasses.dataclass(frozen=True)
class Opened:
  """A checkpoint, and tasks that it can be asked."""
  flags: EvaluateFlags
  saved: Saved
  text: HarnessText
  asking: Asking
  prepared: Prepared
  strategy: OpenedStrategy

  def annotate(self) -> str | None:
    """Asks a person for examples, where the strategy is to have some; says what was written, else None."""
    strategy = self.strategy
    if not isinstance(strategy, Prompted) or strategy.to_annotate is None:
      return None
    reader = self.saved.read(self.flags, self.text)
    requests = [request for request in self.requests if request.request_type == 'generate_until']
    require(len(requests) > 0, '--strategy', strategy.to_annotate.name, 'no task asks for answers that are written')
    count = strategy.model(self.text, reader, self.flags.seed).annotate(requests, strategy.to_annotate)
    return (f'{strategy.to_annotate.annotations}: {count} questions; fill in rationale and answer of each, and start '
            'the same command again')

  @property
  def requests(self) -> list[Any]:
    """The harness's, of all tasks."""
    return [instance for task in self.prepared.tasks.values() for instance in task.instances]

  def evaluate(self) -> dict[str, Any]:
    """Reads the parameters and answers everything; the harness's results."""
    reader = self.saved.read(self.flags, self.text)
    model = self.strategy.model(self.text, reader, self.flags.seed)
    return run(model, self.prepared, self.asking, with_template=self.text.template is not None)


def open_model(flags: EvaluateFlags, workdir: pathlib.Path) -> Opened:
  """Finds the checkpoint and looks at all that it is going to be asked.

  Raises:
    ConfigError: a task that cannot be had, data that does not fit, or a request that cannot be scored.
    CheckpointError: as `find_checkpoint` does.
  """
  source = task_source(flags)
  source.check()
  saved = Saved.find(flags, workdir)
  text = text_of(flags, saved)
  asking = Asking(flags.limit, flags.system, not flags.one_turn, flags.truncate, flags.cluster)
  prepared = prepare(source, asking, text)
  requests = [instance for task in prepared.tasks.values() for instance in task.instances]
  strategy = open_strategy(flags, workdir, text, requests)
  return Opened(flags, saved, text, asking, prepared, strategy)


def task_source(flags: EvaluateFlags) -> TaskSource:
  own = Index({}, frozenset()) if flags.include_path is None else scan(flags.include_path)
  return TaskSource(flags.tasks, flags.data, flags.examples, flags.num_fewshot, flags.allow_code, flags.samples, own)


def text_of(flags: EvaluateFlags, saved: Saved) -> HarnessText:
  """How the model reads texts. Raises ConfigError where it has no chat template, and one is asked for."""
  tokenizer = load_tokenizer(saved.workdir / 'tokenizer')
  check_tokenizer(saved.checkpoint, tokenizer)
  model = saved.run.model_of(saved.stage)
  template = None
  if flags.chat:
    template = flags.template or saved.stage.data.template or brought_template(saved.run, tokenizer)
    require(template is not None, '--chat', True, 'the model has no chat template: it learnt from no conversations and '
            'brings none; name one with --template, or leave --chat out')
    assert template is not None
    check_template(template, tokenizer)
  longest = model.meant_length or EXPORTED_LENGTH
  limit = model.max_length
  require(flags.max_length is None or limit is None or flags.max_length <= limit, '--max_length', flags.max_length,
          f'the model has {limit} learned positions')
  return HarnessText(tokenizer, template, not flags.no_bos, model.vocab_size, flags.max_length or longest,
                     like_hf=flags.against == HF)


def on_devices(params: Any) -> Any:
  """The parameters on every device of every process, which share the rows of a batch."""
  if jax.device_count() == 1:
    return jax.device_put(params)
  place = lambda array, sharding: jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
  return jax.tree.map(place, params, param_shardings(params, make_mesh(Mesh(data=jax.device_count()))))


def is_first() -> bool:
  """Whether this process writes the results."""
  return jax.process_index() == 0


def check_alone(flags: EvaluateFlags) -> None:
  """Refuses what one process alone can do: ConfigError."""
  require(flags.against is None or jax.process_count() == 1, '--against', flags.against,
          'does not go with several processes: compare with one')
