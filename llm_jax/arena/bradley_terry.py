"""Strengths of models from pairwise battles (Bradley and Terry 1952): by maximum likelihood, with bootstrap intervals.

`wins[i, j]` is how often model i beat model j; a tie counts half for each.
"""
import dataclasses
from collections.abc import Sequence

import numpy as np

from llm_jax.config.errors import require

ELO = 400 / np.log(10)  # points of a factor e in the odds
MEAN_RATING = 1_000
LARGEST_STEP = 2.0  # of a strength in one step of Newton's method
TOLERANCE = 1e-12
MOST_STEPS = 200


@dataclasses.dataclass(frozen=True)
class Ratings:
  """names: of the models, the strongest first.

  ratings: on Elo's scale, with a mean of 1,000.
  low, high: the ends of the 95 % intervals.
  battles: how many each was in.
  win_rates: the share that each won, ties counting half.
  unbounded: resamples in which somebody won or lost everything, so that no finite strength is the likeliest. They are
    left out of the intervals.
  """
  names: tuple[str, ...]
  ratings: np.ndarray
  low: np.ndarray
  high: np.ndarray
  battles: np.ndarray
  win_rates: np.ndarray
  unbounded: int


def strengths(wins: np.ndarray) -> np.ndarray:
  """The likeliest strengths, whose mean is 0: i beats j with probability 1 / (1 + exp(s_j - s_i)).

  Args:
    wins: [..., models, models]; leading axes are problems of their own.

  Newton's method on the log-likelihood, which is concave; it has a maximum where `is_connected`.
  """
  models = wins.shape[-1]
  games = wins + np.swapaxes(wins, -1, -2)
  won = wins.sum(-1)
  found = np.zeros(wins.shape[:-1])
  level = np.ones((models, models))  # the mean is free, and is kept at 0
  for _ in range(MOST_STEPS):
    p = 1 / (1 + np.exp(found[..., None, :] - found[..., :, None]))
    gradient = won - (games * p).sum(-1)
    coupling = games * p * (1 - p)
    hessian = coupling.sum(-1)[..., None] * np.eye(models) - coupling + level
    step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
    found = found + np.clip(step, -LARGEST_STEP, LARGEST_STEP)
    found -= found.mean(-1, keepdims=True)
    if np.abs(step).max() < TOLERANCE:
      break
  return found


def is_connected(wins: np.ndarray) -> np.ndarray:
  """bool [...]: whether every model beat every other one, or one that did, and so on (Ford 1957): only then is there a
  likeliest strength."""
  models = wins.shape[-1]
  reached = (wins > 0) | np.eye(models, dtype=bool)
  for _ in range(models.bit_length()):
    reached = (reached.astype(np.int64) @ reached.astype(np.int64)) > 0
  return np.asarray(reached.all((-1, -2)))


def check_connected(wins: np.ndarray, names: Sequence[str]) -> None:
  """Refuses battles that cannot rank the models: ConfigError names those that are apart."""
  games = wins + wins.T
  for group in _groups(games, names):
    require(len(group) == len(names), 'votes', ', '.join(group),
            'no battle joins them with the others: let them meet, or rate them apart')
  reached = (wins > 0) | np.eye(len(names), dtype=bool)
  for _ in names:
    reached = (reached.astype(np.int64) @ reached.astype(np.int64)) > 0
  for i, row in enumerate(reached):
    beaten = [names[j] for j in np.flatnonzero(row).tolist()]
    require(len(beaten) == len(names), 'votes', names[i] if len(beaten) == 1 else ', '.join(beaten),
            'never won against any of the others, so no finite rating is the likeliest: add battles')


def _groups(games: np.ndarray, names: Sequence[str]) -> list[list[str]]:
  """The models, in groups that met."""
  reached = (games > 0) | np.eye(len(names), dtype=bool)
  for _ in names:
    reached = (reached.astype(np.int64) @ reached.astype(np.int64)) > 0
  rows = {tuple(np.flatnonzero(row).tolist()) for row in reached}
  return [[names[i] for i in row] for row in sorted(rows)]


def resampled(wins: np.ndarray, ties: np.ndarray, samples: int, seed: int) -> np.ndarray:
  """`samples` times as many battles, drawn from those that were with replacement: [samples, models, models].

  Args:
    wins: whole wins, without ties.
    ties: symmetric, how often two tied.
  """
  models = len(wins)
  upper = np.triu(ties, 1)
  counts = np.concatenate([wins.flatten(), upper.flatten()])
  total = int(counts.sum())
  drawn = np.random.default_rng(seed).multinomial(total, counts / total, size=samples)
  drawn_wins = drawn[:, :models * models].reshape(samples, models, models)
  drawn_ties = drawn[:, models * models:].reshape(samples, models, models)
  return drawn_wins + 0.5 * (drawn_ties + drawn_ties.swapaxes(1, 2))


def rate(names: Sequence[str], wins: np.ndarray, ties: np.ndarray, samples: int = 1_000, seed: int = 0) -> Ratings:
  """Ratings with 95 % percentile intervals of a bootstrap over the battles.

  Raises:
    ConfigError: models that no battle joins with the others, or that won or lost everything.
  """
  counted = wins + 0.5 * ties
  check_connected(counted, names)
  found = MEAN_RATING + ELO * strengths(counted)
  draws = resampled(wins, ties, samples, seed)
  bounded = is_connected(draws)
  spread = MEAN_RATING + ELO * strengths(draws[bounded]) if bounded.any() else np.full((1, len(names)), np.nan)
  low, high = np.percentile(spread, [2.5, 97.5], axis=0)
  order = np.argsort(-found, kind='stable')
  battles = (counted + counted.T).sum(1)
  win_rates = counted.sum(1) / battles
  ordered: tuple[str, ...] = tuple(str(names[i]) for i in order.tolist())
  return Ratings(ordered, found[order], low[order], high[order], battles[order],
                 win_rates[order], int((~bounded).sum()))


def online_elo(names: Sequence[str], battles: Sequence[tuple[str, str, float]], step: float = 4.0
               ) -> list[dict[str, float]]:
  """The ratings after every battle if each moves the two by `step` x (result - expectation) (Elo 1978). They depend on
  the order, so they are a history and not the result.

  Args:
    battles: (first, second, what the first got: 1, 0.5 or 0).
  """
  ratings = dict.fromkeys(names, float(MEAN_RATING))
  history: list[dict[str, float]] = []
  for first, second, result in battles:
    expected = 1 / (1 + np.exp((ratings[second] - ratings[first]) / ELO))
    change = step * (result - float(expected))
    ratings[first] += change
    ratings[second] -= change
    history.append(dict(ratings))
  return history
