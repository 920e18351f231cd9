"""Devices by name, such as 'v5p:8x8x16', 'h100:64' or 'cpu:8': which there are, and what one of them does."""
import dataclasses
import math
import re

from llm_jax.config.errors import require

GIB = 2**30
PATTERN = re.compile(r'(\w+):(\d+(?:x\d+)*)')


@dataclasses.dataclass(frozen=True)
class Chip:
  """What one device can do.

  backend: of jax: 'tpu', 'gpu' or 'cpu'.
  peak: dense bfloat16 FLOP/s, and memory: bytes, as the makers state them; None where it depends on the machine.
  watts: the board's power limit; None where it is not published.
  link: bytes a second that it sends to its neighbours, all links together: half of what is stated for both ways.
  network: the same to other hosts, of GPUs: a card of 400 Gbit/s for each, as the reference designs have.
  largest: the largest slice of a TPU; () for what has no shape.
  """
  name: str
  backend: str
  peak: float | None
  memory: float | None
  watts: float | None
  largest: tuple[int, ...] = ()
  link: float | None = None
  network: float | None = None


# Google Cloud's pages of each TPU; NVIDIA's data sheets (A100 2020, H100 2023, H200 and B200 2024).
CHIPS = {
  'v4': Chip('TPU v4', 'tpu', 275e12, 32 * GIB, None, (12, 16, 16), 300e9),
  'v5e': Chip('TPU v5e', 'tpu', 197e12, 16 * GIB, None, (16, 16), 200e9),
  'v5p': Chip('TPU v5p', 'tpu', 459e12, 95 * GIB, None, (16, 16, 24), 600e9),
  'v6e': Chip('TPU v6e', 'tpu', 918e12, 32 * GIB, None, (16, 16), 400e9),
  'a100': Chip('A100 80GB', 'gpu', 312e12, 80e9, 400, (), 300e9, 50e9),
  'h100': Chip('H100 80GB', 'gpu', 989.4e12, 80e9, 700, (), 450e9, 50e9),
  'h200': Chip('H200', 'gpu', 989.4e12, 141e9, 700, (), 450e9, 50e9),
  'b200': Chip('B200', 'gpu', 2.25e15, 180e9, 1_000, (), 900e9, 50e9),
  'cpu': Chip('CPU device', 'cpu', None, None, None),
}
FLAT_SLICES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
SMALL_CUBES = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))  # below one of 4 x 4 x 4
GPUS_A_HOST = 8


@dataclasses.dataclass(frozen=True)
class Topology:
  """name: as given.   shape: of a TPU slice; else the number of devices alone."""
  name: str
  chip: Chip
  shape: tuple[int, ...]

  @property
  def devices(self) -> int:
    return math.prod(self.shape)


def parse_topology(text: str) -> Topology:
  """'v5p:4x4x4', 'h100:64' or 'cpu:8'.   Raises: ConfigError where there is no such thing."""
  known = ', '.join(CHIPS)
  match = PATTERN.fullmatch(text)
  require(match is not None and match[1] in CHIPS, '--topology', text,
          f'write it like v5p:4x4x4, h100:64 or cpu:8, with one of {known}')
  assert match is not None
  topology = Topology(text, CHIPS[match[1]], tuple(int(size) for size in match[2].split('x')))
  match topology.chip.backend:
    case 'tpu':
      _check_slice(topology)
    case 'gpu':
      _check_count(topology)
      is_whole = topology.devices <= GPUS_A_HOST or topology.devices % GPUS_A_HOST == 0
      require(is_whole, '--topology', text, f'hosts have {GPUS_A_HOST} GPUs: use whole hosts')
    case 'cpu':
      _check_count(topology)
  return topology


def _check_count(topology: Topology) -> None:
  is_count = len(topology.shape) == 1 and topology.devices > 0
  require(is_count, '--topology', topology.name, 'give the number of devices, such as h100:64')


def _check_slice(topology: Topology) -> None:
  largest, shape = topology.chip.largest, topology.shape
  if len(largest) == 2:
    require(shape in FLAT_SLICES, '--topology', topology.name,
            f'there is no such slice: use one of {", ".join(_shown(each) for each in FLAT_SLICES)}')
    return
  is_cube = len(shape) == 3 and all(size % 4 == 0 and size > 0 for size in shape)
  fits = is_cube and list(shape) == sorted(shape) and math.prod(shape) <= math.prod(largest)
  require(shape in SMALL_CUBES or fits, '--topology', topology.name,
          f'there is no such slice: use one of {", ".join(_shown(each) for each in SMALL_CUBES)}, or three rising '
          f'multiples of 4, up to {_shown(largest)}')


def _shown(shape: tuple[int, ...]) -> str:
  return 'x'.join(map(str, shape))
