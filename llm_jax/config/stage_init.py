"""Where a stage starts."""
import dataclasses
import math

from llm_jax.config.errors import require

__all__ = ['Init', 'Member']


@dataclasses.dataclass(frozen=True)
class Member:
  """A checkpoint that is averaged with others: of `stage` after `step` of its steps (None: its last).

  weight: its share in the mean is its weight by the sum of all weights.
  """
  stage: str
  step: int | None = None
  weight: float = 1.0

  def __post_init__(self):
    require(self.step is None or self.step > 0, 'step', self.step, 'use 1 or more, or None for the last')
    require(0 < self.weight < math.inf, 'weight', self.weight, 'use a finite weight above 0')


Init = tuple[str | int | Member, ...]

FORMS = {'scratch': (), 'resume': (str,), 'params': (str,), 'average': (str, int), 'hf': (str,)}


def check_init(init: Init) -> None:
  """Refuses what is none of the forms that `Stage.init` may have."""
  kinds = tuple(map(type, init[1:]))
  members = len(init) > 1 and init[0] == 'average' and set(kinds) == {Member}
  require(members or bool(init) and FORMS.get(init[0]) == kinds, 'init', init,
          "use ('scratch',), ('resume', stage), ('params', stage), ('average', stage, n), "
          "('average', Member(stage, step), ...) or ('hf', folder)")
  require(members or init[0] != 'average' or init[2] > 0, 'init', init, 'average 1 checkpoint or more')


def members_of(init: Init) -> tuple[Member, ...]:
  """The checkpoints that are named one by one; none where there are no such."""
  return tuple(each for each in init if isinstance(each, Member))


def parents_of(init: Init) -> tuple[str, ...]:
  """The stages that are started from, each once."""
  if init[0] in ('scratch', 'hf'):
    return ()
  return tuple(dict.fromkeys(member.stage for member in members_of(init))) or (init[1],)
