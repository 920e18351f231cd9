"""What searches an index: the model whose states its vectors are, or the package that made them."""
import dataclasses
import hashlib
import pathlib
from typing import Any

from launch.saved_models import check_tokenizer, find_checkpoint, read_model
from llm_jax.checkpoints import manifest
from llm_jax.checkpoints.checkpoint import SavedCheckpoint
from llm_jax.config.errors import require
from llm_jax.config.run import Run
from llm_jax.config.stage import Stage
from llm_jax.data.tokenizers.base import Tokenizer, load_tokenizer
from llm_jax.modules.execution import Execution, dtype_of
from llm_jax.retrieve.embed import Embedder, WordLlama
from llm_jax.retrieve.index import BM25_ALONE, Index
from llm_jax.retrieve.states import OwnStates, states_fingerprint
from llm_jax.tracking.run_config import read_config

LONGEST = 2_048  # tokens of a text that a model reads whose positions state no length


@dataclasses.dataclass(frozen=True)
class StatesModel:
  """A checkpoint whose states are vectors of texts."""
  workdir: pathlib.Path
  run: Run
  stage: Stage
  checkpoint: SavedCheckpoint
  tokenizer: Tokenizer

  @classmethod
  def find(cls, workdir: pathlib.Path, stage: str | None = None, step: int | None = None) -> 'StatesModel':
    """Raises ConfigError for a folder that is no run, CheckpointError as `find_checkpoint` does."""
    run = read_config(workdir, '--checkpoint')
    found = cls(workdir, run, *find_checkpoint('checkpoint', workdir, run, stage, step),
                load_tokenizer(workdir / 'tokenizer'))
    check_tokenizer(found.checkpoint, found.tokenizer)
    return found

  @property
  def weights(self) -> str:
    """What tells the parameters from others: the checksum of the checksums of their files."""
    return hashlib.sha256((self.checkpoint.path / manifest.NAME).read_bytes()).hexdigest()

  @property
  def longest(self) -> int:
    return self.run.model_of(self.stage).meant_length or LONGEST

  @property
  def fingerprint(self) -> str:
    """Of the vectors, without the parameters."""
    return states_fingerprint(self.weights, self.tokenizer, self.longest)

  def embedder(self, params: Any = None) -> OwnStates:
    """params: on the devices; None: they are read."""
    if params is None:
      params = read_model(self.run, self.workdir, self.stage, self.checkpoint)
    return OwnStates(self.run.model_of(self.stage), params, self.tokenizer, self.weights, self.longest,
                     Execution(dtype_of(self.run.dtype)))


def needs_states(index: Index, method: str) -> bool:
  """Whether a search compares with states of a model."""
  return index.vectors is not None and method != BM25_ALONE and index.vectors.embedder == OwnStates.name


def check_index(index: Index, method: str, model: StatesModel | None) -> None:
  """Refuses, before any parameters are read, an index that cannot be searched so: ConfigError.

  model: where `needs_states` says so.
  """
  index.check_method(method)
  if needs_states(index, method):
    require(model is not None, '--checkpoint', None, 'the vectors of the index are the states of a model: name it')
    assert model is not None
    index.check_embedder(model.fingerprint)
  elif method != BM25_ALONE:
    index.check_embedder(WordLlama().fingerprint)


def embedder_of(index: Index, method: str, model: StatesModel | None, params: Any = None) -> Embedder | None:
  """What makes the vectors of questions; None where none are needed. `check_index` comes first.

  params: of the model, where they have been read.
  """
  if method == BM25_ALONE:
    return None
  if not needs_states(index, method):
    return WordLlama()
  assert model is not None
  return model.embedder(params)
