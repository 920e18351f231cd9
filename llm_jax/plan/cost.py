"""What a run takes: time, chip-hours, money, energy and carbon dioxide, from its FLOPs and stated assumptions."""
import dataclasses

from llm_jax.config.errors import require

PETAFLOPS_DAY = 1e15 * 86_400
HOUR = 3_600


@dataclasses.dataclass(frozen=True)
class Assumptions:
  """What a plan takes for granted.

  mfu: share of the chips' peak that a step reaches.
  price: of a chip and hour, in dollars; None: no price is given.
  watts: of a chip; None: no energy is given.
  pue: what the data centre uses over what the chips use.
  carbon: kilograms of CO2 a kWh. (PUE and carbon as Touvron et al. 2023, LLaMA, section 6, take them.)
  bytes_per_token: of text, to tell how many tokens a file has that nobody has read yet.
  """
  mfu: float = 0.4
  price: float | None = None
  watts: float | None = None
  pue: float = 1.1
  carbon: float = 0.385
  bytes_per_token: float = 4.0

  def __post_init__(self):
    require(0 < self.mfu <= 1, '--mfu', self.mfu, 'use a share in (0, 1]')
    for field in ('price', 'watts', 'carbon'):
      value = getattr(self, field)
      require(value is None or value >= 0, f'--{field}', value, 'use 0 or more')
    require(self.pue >= 1, '--pue', self.pue, 'use 1 or more')
    require(self.bytes_per_token > 0, '--bytes_per_token', self.bytes_per_token, 'use a number above 0')


@dataclasses.dataclass(frozen=True)
class Cost:
  """seconds: of the run.   energy: MWh.   carbon: tonnes of CO2.   Those that nothing is known of are None."""
  seconds: float | None
  chip_hours: float | None
  dollars: float | None
  energy: float | None
  carbon: float | None


def cost_of(flops: float, chips: int, peak: float | None, assumptions: Assumptions) -> Cost:
  """Of a run of so many FLOPs.   peak: FLOP/s of a chip; None: not known."""
  if peak is None:
    return Cost(None, None, None, None, None)
  seconds = flops / (chips * peak * assumptions.mfu)
  return cost_of_hours(chips * seconds / HOUR, seconds, assumptions)


def cost_of_hours(chip_hours: float, seconds: float | None, assumptions: Assumptions) -> Cost:
  dollars = None if assumptions.price is None else chip_hours * assumptions.price
  energy = None if assumptions.watts is None else megawatt_hours(chip_hours, assumptions.watts, assumptions.pue)
  carbon = None if energy is None else tonnes_of_carbon(energy, assumptions.carbon)
  return Cost(seconds, chip_hours, dollars, energy, carbon)


def megawatt_hours(chip_hours: float, watts: float, pue: float) -> float:
  """Energy of so many chip-hours (Touvron et al. 2023, LLaMA, section 6)."""
  return chip_hours * watts * pue / 1e6


def tonnes_of_carbon(energy: float, carbon: float) -> float:
  """CO2 of so many MWh, at so many kilograms a kWh: MWh and tonnes are each a thousand of these."""
  return energy * carbon
