"""The least time of a step: what the arithmetic takes at the peak, and what the network takes at its full rate."""
import dataclasses
import math
from collections.abc import Mapping, Sequence

from llm_jax.config.model.architecture import Architecture
from llm_jax.config.model.flops import training_flops_per_token
from llm_jax.config.ramp import Phase
from llm_jax.config.stage import Stage
from llm_jax.plan.topology import GPUS_A_HOST, Topology
from llm_jax.plan.traffic import Traffic
from llm_jax.sharding.ticks import bubble

# What is computed again in the backward pass, as a share of a step without: 'block' is one more forward pass.
COMPUTED_AGAIN = {'none': 0.0, 'dots': 0.0, 'offload': 0.0, 'block': 1 / 3}


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds of a step.

  arithmetic: at the peak, recomputation and a pipeline's bubble included.
  network: of the slowest link after the other.
  """
  arithmetic: float
  network: float

  @property
  def seconds(self) -> float:
    """Where one overlaps the other wholly."""
    return max(self.arithmetic, self.network)

  @property
  def bound(self) -> str:
    return 'arithmetic' if self.arithmetic >= self.network else 'network'


def roofline(model: Architecture, stage: Stage, phase: Phase, sizes: Mapping[str, int], traffic: Sequence[Traffic],
             topology: Topology, pieces: int = 1) -> Roofline | None:
  """Of a step on some devices; None where their peak is not known.

  sizes: of the mesh axes, in the mesh's order.   pieces: of a pipeline, whose stages wait for the rest of the time.
  """
  chip = topology.chip
  if chip.peak is None or chip.link is None:
    return None
  flops = phase.tokens * training_flops_per_token(model, phase.seq_len) * (1 + COMPUTED_AGAIN[stage.remat])
  network = sum(each.sent / bandwidth(each.axis, sizes, topology) for each in traffic)
  busy = 1 - bubble(sizes['pipeline'], pieces)
  return Roofline(flops / (topology.devices * chip.peak) / busy, network)


def bandwidth(axis: str, sizes: Mapping[str, int], topology: Topology) -> float:
  """Bytes a second that a device sends along a mesh axis (or several, 'data+context').

  Later axes of the mesh lie closer together; an axis that leaves a host of GPUs goes at the pace of its network cards.
  """
  chip = topology.chip
  assert chip.link is not None
  names = list(sizes)
  first = min(names.index(name) for name in axis.split('+'))
  reach = math.prod(list(sizes.values())[first:])
  leaves_host = chip.backend == 'gpu' and reach > GPUS_A_HOST
  return chip.network if leaves_host and chip.network is not None else chip.link
