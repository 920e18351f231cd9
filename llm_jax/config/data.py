"""The data of a stage: a weighted mixture of sources."""
import dataclasses
import itertools
import math
import re

from llm_jax.config.errors import require
from llm_jax.config.rows import RowKind
from llm_jax.config.sources import Source

__all__ = ['Data', 'Weight', 'Weighted']

Weight = float | tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True)
class Weighted:
  """A source and its share of the mixture.

  source: where its documents come from.
  weight: a number, or points (share of the stage's steps, weight). Between points it follows straight lines, so that
    ((0, .1), (.5, .1), (1, .9)) takes the source up in the second half of the stage.
  """
  source: Source
  weight: Weight = 1.0

  def __post_init__(self):
    require(
      0 <= self.source.val_fraction < 1, 'source.val_fraction', self.source.val_fraction, 'use a fraction in [0, 1)'
    )
    if not isinstance(self.weight, tuple):
      require(math.isfinite(self.weight) and self.weight > 0, 'weight', self.weight, 'use a finite weight above 0')
      return
    pairs = len(self.weight) > 0 and all(len(point) == 2 for point in self.weight)
    require(pairs, 'weight', self.weight, 'use points (share of the steps, weight), such as ((0, 1), (1, .5))')
    places = [place for place, _ in self.weight]
    rising = all(a < b for a, b in zip(places, places[1:], strict=False))
    require(rising and 0 <= places[0] and places[-1] <= 1, 'weight', self.weight,
            "points are shares of the stage's steps: let them rise from 0 to 1")
    require(all(0 <= weight < math.inf for _, weight in self.weight) and self.most > 0, 'weight', self.weight,
            'use finite weights of 0 or more, one of them above')

  @property
  def most(self) -> float:
    return max(weight for _, weight in self.weight) if isinstance(self.weight, tuple) else self.weight

  def at(self, progress: float) -> float:
    """The weight at a share of the stage's steps."""
    if not isinstance(self.weight, tuple):
      return self.weight
    after = sum(place <= progress for place, _ in self.weight)
    if after in (0, len(self.weight)):
      return self.weight[min(after, len(self.weight) - 1)][1]
    (x0, y0), (x1, y1) = self.weight[after - 1:after + 1]
    return y0 + (y1 - y0) * (progress - x0) / (x1 - x0)


@dataclasses.dataclass(frozen=True)
class Data:
  """A weighted mixture of sources, packed into rows of the stage's sequence length.

  sources: of the mixture, each with its weight.
  packing: 'concat' cuts documents that follow each other into rows, 'best_fit' keeps them whole where they fit.
    'concat' cuts every `seq_len` tokens; 'best_fit' (Ding et al. 2024) pads.
  """
  sources: tuple[Weighted, ...]
  packing: str = 'concat'

  def __post_init__(self):
    require(len(self.sources) > 0, 'sources', self.sources, 'name at least one source')
    require(self.packing in ('concat', 'best_fit'), 'packing', self.packing, "use 'concat' or 'best_fit'")
    self._check_sources()
    self._check_weights()

  def _check_sources(self) -> None:
    """One stage learns from one kind of rows, written out in one way."""
    sources = [part.source for part in self.sources]
    for source in sources:
      require(source.rows == self.rows, 'sources', [type(each).__name__ for each in sources],
              f'{self.rows.name} and {source.rows.name} cannot be mixed: give each a stage of its own')
      require(source.sequences == self.sequences, 'sources', [each.sequences for each in sources],
              'ranked answers of one stage are as many a prompt: give `answers` the same number')
      require(source.classes == self.labels, 'sources', [each.classes for each in sources],
              'texts with classes are mixed with none but those of the same')
      require(source.has_margins == self.has_margins, 'sources', [each.has_margins for each in sources],
              'pairs with margins are mixed with none without: give `margin` to all sources or to none')
      require(source.has_soft_labels == self.has_soft_labels, 'sources', [each.has_soft_labels for each in sources],
              'pairs with soft labels are mixed with none without: give `soft_label` to all sources or to none')
    templates = list(dict.fromkeys(source.chat_template for source in sources if source.chat_template))
    require(len(templates) <= 1, 'sources', templates,
            'dialogues of one stage are written out by one chat template: choose one of these for all')

  def _check_weights(self) -> None:
    """Something is read at every step. Between two points weights are straight lines, so that the points decide."""
    scheduled = [part.weight for part in self.sources if isinstance(part.weight, tuple)]
    for place in {place for weight in scheduled for place, _ in weight}:
      total = sum(part.at(place) for part in self.sources)
      require(total > 0, 'sources', [part.weight for part in self.sources],
              f'all weights are 0 at {place} of the stage: leave one above')

  @property
  def names(self) -> tuple[str, ...]:
    """Of its sources, no two alike: the first word of the file's, folder's or data set's name, else the kind."""
    names: list[str] = []
    for part in self.sources:
      place = getattr(part.source, 'path', '') or getattr(part.source, 'name', '')
      places = place.replace('*', '').split('/')
      words = [re.split(r'[^\w-]', place, maxsplit=1)[0].strip('_-') for place in reversed(places)]
      name = next(filter(None, words), type(part.source).__name__)
      counted = (f'{name}_{k}' if k > 1 else name for k in itertools.count(1))
      names.append(next(each for each in counted if each not in names))
    return tuple(names)

  @property
  def rows(self) -> RowKind:
    """The kind of rows that its sources become."""
    return self.sources[0].source.rows

  @property
  def sequences(self) -> int:
    """Token sequences of the stage's `seq_len` in one row."""
    return self.sources[0].source.sequences

  @property
  def labels(self) -> tuple[str, ...] | None:
    """The classes of its texts; None where they have none."""
    return self.sources[0].source.classes

  @property
  def has_margins(self) -> bool:
    """Whether its rows say how much better one of two answers is."""
    return self.sources[0].source.has_margins

  @property
  def has_soft_labels(self) -> bool:
    """Whether its rows say how probable it is that one of two answers is better."""
    return self.sources[0].source.has_soft_labels

  @property
  def template(self) -> str | None:
    """The chat template of its dialogues; None where it has none."""
    return next((part.source.chat_template for part in self.sources if part.source.chat_template), None)
