"""A folder that keeps passages and their vectors, with the fingerprints of what they are made of."""
import dataclasses
import hashlib
import io
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from llm_jax.config.errors import ConfigError, require
from llm_jax.retrieve.bm25 import BM25
from llm_jax.retrieve.dense import Dense
from llm_jax.retrieve.embed import Embedder
from llm_jax.retrieve.passages import Passage
from llm_jax.retrieve.ranking import Fused, Retriever
from llm_jax.runtime.files import write_atomic

PASSAGES, VECTORS, INDEX = 'passages.jsonl', 'vectors.npy', 'index.json'
BM25_ALONE, DENSE, FUSED = METHODS = ('bm25', 'dense', 'fused')


@dataclasses.dataclass(frozen=True)
class Vectors:
  """array: float32 [passages, width].   embedder, fingerprint: what made them, see `Embedder`."""
  array: np.ndarray
  embedder: str
  fingerprint: str


@dataclasses.dataclass(frozen=True)
class Index:
  """passages: in the order of their numbers.   made_of: the fingerprint of the texts and of how they were cut."""
  passages: tuple[Passage, ...]
  made_of: str
  vectors: Vectors | None = None

  @property
  def texts(self) -> list[str]:
    return [passage.text for passage in self.passages]

  @property
  def fingerprint(self) -> str:
    """sha256 of all passages, in order."""
    lines = [json.dumps(dataclasses.astuple(passage)) for passage in self.passages]
    return hashlib.sha256('\n'.join(lines).encode()).hexdigest()

  @property
  def methods(self) -> tuple[str, ...]:
    """Ways to search it, the one that is taken by default last."""
    return (BM25_ALONE,) if self.vectors is None else METHODS

  def check_method(self, method: str) -> None:
    """Refuses a search by vectors where there are none: ConfigError."""
    require(method in self.methods, '--method', method, f'the index allows {", ".join(self.methods)}: build it with '
            '--embed for the others')

  def check_embedder(self, fingerprint: str) -> None:
    """Refuses what has made other vectors than those of the index: ConfigError."""
    require(self.vectors is not None and self.vectors.fingerprint == fingerprint, 'index', fingerprint[:12],
            'its vectors are of another model or another version: build it again')

  def retriever(self, method: str, embed: Embedder | None = None) -> Retriever:
    """What searches it.   embed: what made its vectors; None: for BM25 alone.

    Raises:
      ConfigError: there are no vectors, or `embed` has not made them.
    """
    self.check_method(method)
    match method:
      case 'bm25':
        return BM25(self.texts)
      case 'dense':
        return self._dense(embed)
      case 'fused':
        return Fused((BM25(self.texts), self._dense(embed)))
      case _:
        raise ValueError(method)

  def _dense(self, embed: Embedder | None) -> Dense:
    assert self.vectors is not None and embed is not None
    self.check_embedder(embed.fingerprint)
    return Dense(self.vectors.array, embed)


def embedded(passages: Sequence[Passage], embed: Embedder) -> Vectors:
  """The vectors of all passages."""
  return Vectors(embed([passage.text for passage in passages]), embed.name, embed.fingerprint)


def texts_fingerprint(texts: Sequence[tuple[str, str]], tokenizer: str, length: int, overlap: int) -> str:
  """Of texts and of how they are cut.   texts: (source, text).   tokenizer: its fingerprint."""
  return hashlib.sha256(json.dumps([list(texts), tokenizer, length, overlap]).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------- files
def save(folder: pathlib.Path, index: Index) -> None:
  """Writes the folder. `index.json` comes last and holds the checksums of the others."""
  folder.mkdir(parents=True, exist_ok=True)
  rows = [json.dumps(dataclasses.asdict(passage)) for passage in index.passages]
  write_atomic(folder / PASSAGES, '\n'.join(rows) + '\n')
  stated = {'passages': len(index.passages), 'fingerprint': index.fingerprint, 'made_of': index.made_of}
  if index.vectors is not None:
    content = io.BytesIO()
    np.save(content, index.vectors.array, allow_pickle=False)
    write_atomic(folder / VECTORS, content.getvalue())
    stated |= {'embedder': index.vectors.embedder, 'embedder_fingerprint': index.vectors.fingerprint,
               'vectors': hashlib.sha256(content.getvalue()).hexdigest()}
  write_atomic(folder / INDEX, json.dumps(stated, indent=1) + '\n')


def load(folder: pathlib.Path, made_of: str | None = None) -> Index:
  """The index of a folder.

  made_of: the `texts_fingerprint` that it must have; None: any.

  Raises:
    ConfigError: there is none, its files are not those that were saved, or it is of other texts.
  """
  try:
    rows = (folder / PASSAGES).read_text(encoding='utf-8').splitlines()
    stated = json.loads((folder / INDEX).read_text(encoding='utf-8'))
    passages = tuple(Passage(**json.loads(row)) for row in rows)
    content = (folder / VECTORS).read_bytes() if 'vectors' in stated else b''
  except (OSError, ValueError, TypeError) as error:
    raise ConfigError('index', str(folder), f'cannot be read ({error}): build it first') from error
  index = Index(passages, str(stated.get('made_of')))
  is_whole = index.fingerprint == stated.get('fingerprint')
  if content:
    is_whole = is_whole and hashlib.sha256(content).hexdigest() == stated['vectors']
  require(is_whole, 'index', str(folder), 'its files are not those that were saved: build it again')
  require(made_of in (None, index.made_of), 'index', str(folder),
          'the texts, or how they are cut, have changed since: build it again')
  if not content:
    return index
  array = np.load(io.BytesIO(content), allow_pickle=False)
  return dataclasses.replace(index, vectors=Vectors(array, stated['embedder'], stated['embedder_fingerprint']))
