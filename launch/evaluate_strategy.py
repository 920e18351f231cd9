"""What answers the questions of `launch.evaluate`: the model itself, or a strategy around it."""
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

from launch.evaluate_flags import EvaluateFlags
from launch.retrieve_model import StatesModel, check_index, embedder_of, needs_states
from llm_jax.config.errors import require
from llm_jax.config.strategies import ActivePrompt, Prompting, Retrieval
from llm_jax.harness.model import HarnessModel, Reader
from llm_jax.harness.text import HarnessText
from llm_jax.prompting.retrieval import Passages, RetrievalModel, check_passages
from llm_jax.prompting.room import check_room
from llm_jax.prompting.strategy_model import Files, StrategyModel, read_files
from llm_jax.retrieve.index import Index, load


class OpenedStrategy(Protocol):
  """What has been checked, and waits for the parameters."""

  def model(self, text: HarnessText, reader: Reader, seed: int) -> HarnessModel:
    """What the harness asks."""
    ...


@dataclasses.dataclass(frozen=True)
class Plain:
  """The model itself."""

  def model(self, text: HarnessText, reader: Reader, seed: int) -> HarnessModel:
    return HarnessModel(text, reader, seed)


@dataclasses.dataclass(frozen=True)
class Prompted:
  """Programs that ask the model.   files: what the strategy reads beside the questions."""
  strategy: Prompting
  files: Files

  def model(self, text: HarnessText, reader: Reader, seed: int) -> StrategyModel:
    return StrategyModel(text, reader, self.strategy, seed=seed, files=self.files)

  @property
  def to_annotate(self) -> ActivePrompt | None:
    """The strategy whose file of annotations has still to be made."""
    match self.strategy:
      case ActivePrompt() as active if not self.files:
        return active
      case _:
        return None


@dataclasses.dataclass(frozen=True)
class Retrieved:
  """The model behind the passages of an index.   states: the model itself, where the vectors are its states."""
  strategy: Retrieval
  index: Index
  method: str
  states: StatesModel | None

  def model(self, text: HarnessText, reader: Reader, seed: int) -> HarnessModel:
    embed = embedder_of(self.index, self.method, self.states, reader.params)
    retriever = self.index.retriever(self.method, embed)
    passages = Passages(self.index.texts, retriever, self.strategy.count, self.strategy.field)
    return RetrievalModel(text, reader, passages, seed)


def open_strategy(flags: EvaluateFlags, workdir: pathlib.Path, text: HarnessText, requests: Sequence[Any]
                  ) -> OpenedStrategy:
  """requests: the harness's, that the tasks make.

  Raises:
    ConfigError: a request does not fit with what the strategy adds, or an index cannot be searched.
  """
  match flags.strategy:
    case None:
      return Plain()
    case Retrieval() as strategy:
      require(text.template is None or not strategy.field, '--strategy', f'field={strategy.field}',
              'does not go with --chat, where the last message is searched for: leave it out')
      index = load(pathlib.Path(strategy.index))
      method = strategy.method or index.methods[-1]
      states = StatesModel.find(workdir, flags.stage, flags.step) if needs_states(index, method) else None
      check_index(index, method, states)
      check_passages(text, index.texts, strategy.count, strategy.field, requests)
      return Retrieved(strategy, index, method, states)
    case strategy:
      files = read_files(strategy)
      check_room(text, strategy, requests, files)
      return Prompted(strategy, files)
