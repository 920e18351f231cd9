"""What a stage reads of each source: tokens and epochs, told before anything is tokenised."""
import dataclasses
import glob
import os

from llm_jax.config.data import Data, Weighted
from llm_jax.config.sources import Source, TokenFile
from llm_jax.config.stage import Stage

POINTS = 1_000  # at which weights that change are read
PACKED = ('.gz', '.zst')  # of these nobody knows the length before they are read
TOKEN_BYTES = {'uint16': 2, 'uint32': 4}


@dataclasses.dataclass(frozen=True)
class SourceUse:
  """share: of the stage's tokens.   tokens: that the stage reads of it.   size: tokens that it has, None: not known.

  epochs: how often it is read.
  """
  name: str
  share: float
  tokens: float
  size: float | None
  epochs: float | None


def source_uses(stage: Stage, bytes_per_token: float) -> list[SourceUse]:
  """Of the training split of each source."""
  tokens = stage.tokens_after(stage.steps)
  uses = []
  for name, part in zip(stage.data.names, stage.data.sources, strict=True):
    share = mean_share(stage.data, part)
    size = source_tokens(part.source, bytes_per_token)
    trained = None if size is None else size * (1 - part.source.val_fraction)
    epochs = share * tokens / trained if trained else None
    uses.append(SourceUse(name, share, share * tokens, size, epochs))
  return uses


def mean_share(data: Data, part: Weighted) -> float:
  """The share of a source, averaged over the stage."""
  shares = []
  for point in range(POINTS):
    progress = (point + 0.5) / POINTS
    shares.append(part.at(progress) / sum(other.at(progress) for other in data.sources))
  return sum(shares) / POINTS


def source_tokens(source: Source, bytes_per_token: float) -> float | None:
  """How many tokens a source has: exact for token files, by the size of its files for text; None: not known."""
  pattern = getattr(source, 'path', None)
  if pattern is None:
    return None
  files = files_of(pattern)
  if not files or any(file.endswith(PACKED) for file in files):
    return None
  num_bytes = sum(os.path.getsize(file) for file in files)
  return num_bytes / (TOKEN_BYTES[source.dtype] if isinstance(source, TokenFile) else bytes_per_token)


def files_of(pattern: str) -> list[str]:
  """The files of a path, a folder or a glob."""
  if os.path.isdir(pattern):
    pattern = os.path.join(pattern, '**')
  return [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
