"""The collectives of a compiled program, read from its HLO text: kind, mesh axes and bytes.

Bytes are what a device sends in one run of the program by the ring algorithm, for groups of n devices: an all-gather
sends (n - 1) / n of its result, a reduce-scatter n - 1 times its result, an all-reduce 2 (n - 1) / n of it, an
all-to-all (n - 1) / n, and a permutation all. What is in a loop counts as often as the loop runs; where only the
running program knows that, as often as the reader says.
"""
import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

BYTES = {'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 's32': 4, 'u32': 4, 's64': 8, 'u64': 8, 'bf16': 2, 'f16': 2,
         'f32': 4, 'f64': 8, 'c64': 8, 'f8e4m3fn': 1, 'f8e5m2': 1}
KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'ragged-all-to-all', 'collective-permute')
START = '-start'
COMPUTATION = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{')
INSTRUCTION = re.compile(r'(?:ROOT )?%?([\w.\-]+) = (.*)')
OPCODE = re.compile(r'([\w\-]+)\(')
ARRAY = re.compile(r'\b([a-z]+[0-9]*\w*)\[([0-9,]*)\]')
CALLED = re.compile(r'(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)')
CALLED_MANY = re.compile(r'(?:calls|branch_computations|called_computations)=\{([^}]*)\}')
TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"?(\d+)"?\}')
CONSTANT = re.compile(r'(?:ROOT )?%?([\w.\-]+) = s32\[\]\S* constant\((\d+)\)')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective of a program.

  kind: one of KINDS.   axes: the mesh axes along which its devices differ.
  times: how often it runs.   sent: bytes that a device sends in all of these.
  is_async: whether it is started, and awaited later, so that something else may be computed meanwhile.
  source: what it was made from: the names of jax.
  """
  kind: str
  axes: tuple[str, ...]
  times: int
  sent: float
  is_async: bool
  source: str


@dataclasses.dataclass(frozen=True)
class Instruction:
  """shape: of the result, as HLO writes it.   text: the whole line."""
  shape: str
  opcode: str
  text: str


def collectives_of(text: str, mesh_shape: Mapping[str, int], unknown_count: int = 1) -> list[Collective]:
  """The collectives of a program in HLO, in its order.

  text: of a compiled program, such as `compiled.as_text()`.   mesh_shape: the size of each axis, in the mesh's order.
  unknown_count: how often a loop runs whose count is not in the program, such as the rounds of `token_exchange.py`.
  """
  computations, entry = parse(text)
  times = executions(computations, entry, unknown_count)
  found = []
  seen_channels = set()
  for name, instructions in computations.items():
    for instruction in instructions:
      kind = instruction.opcode.removesuffix(START)
      if kind not in KINDS or not times[name]:
        continue
      is_fused = name.startswith('async_collective_fusion')  # of TPU: parts of one collective, in several fusions
      channel = re.search(r'channel_id=(\d+)', instruction.text)
      if is_fused and channel is not None:
        if channel[1] in seen_channels:
          continue
        seen_channels.add(channel[1])
      # XLA for TPU writes some reduce-scatters as an all-reduce in a fusion of that name.
      if kind == 'all-reduce' and 'all-reduce-scatter' in name:
        kind = 'reduce-scatter'
      is_async = is_fused or instruction.opcode.endswith(START)
      found.append(_collective(kind, instruction, times[name], is_async, mesh_shape))
  return found


def _collective(kind: str, instruction: Instruction, times: int, is_async: bool, mesh_shape: Mapping[str, int]
                ) -> Collective:
  group = first_group(instruction.text, math.prod(mesh_shape.values()))
  n = 2 if kind == 'collective-permute' else len(group)
  result = result_bytes(kind, instruction)
  if kind == 'reduce-scatter' and instruction.opcode.startswith('all-reduce'):
    result /= n
  shares = {'all-gather': (n - 1) / n, 'reduce-scatter': n - 1, 'all-reduce': 2 * (n - 1) / n,
            'all-to-all': (n - 1) / n, 'ragged-all-to-all': (n - 1) / n, 'collective-permute': 1}
  source = re.search(r'op_name="([^"]*)"', instruction.text)
  return Collective(kind, axes_of(group, mesh_shape), times, times * shares[kind] * result, is_async,
                    '' if source is None else source[1])


# ---------------------------------------------------------------------------------------------- reading
def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
  """The instructions of each computation, and the name of the one that runs first."""
  computations: dict[str, list[Instruction]] = {}
  entry = name = ''
  for line in text.splitlines():
    begins = None if line.startswith(' ') else COMPUTATION.match(line)
    if begins is not None:
      name = begins[2]
      computations[name] = []
      entry = name if begins[1] else entry
    elif name and (instruction := parse_instruction(line.strip())) is not None:
      computations[name].append(instruction)
  return computations, entry


def parse_instruction(line: str) -> Instruction | None:
  match = INSTRUCTION.fullmatch(line)
  if match is None:
    return None
  rest = match[2]
  end = _end_of_tuple(rest) if rest.startswith('(') else rest.find(' ')
  opcode = OPCODE.match(rest[end:].strip())
  return None if opcode is None else Instruction(rest[:end], opcode[1], line)


def _end_of_tuple(text: str) -> int:
  depth = 0
  for i, letter in enumerate(text):
    depth += (letter == '(') - (letter == ')')
    if depth == 0:
      return i + 1
  return len(text)


def executions(computations: Mapping[str, list[Instruction]], entry: str, unknown_count: int) -> collections.Counter:
  """How often each computation runs."""
  calls = {name: list(_calls(computations, instructions, unknown_count)) for name, instructions in computations.items()}
  order: list[str] = []
  _visit(entry, calls, set(), order)
  times = collections.Counter({entry: 1})
  for name in reversed(order):  # callers before what they call
    for called, count in calls[name]:
      times[called] += times[name] * count
  return times


def _visit(name: str, calls: Mapping[str, list[tuple[str, int]]], seen: set[str], order: list[str]) -> None:
  seen.add(name)
  for called, _ in calls[name]:
    if called not in seen:
      _visit(called, calls, seen, order)
  order.append(name)


def _calls(computations: Mapping[str, list[Instruction]], instructions: list[Instruction], unknown_count: int
           ) -> Iterator[tuple[str, int]]:
  for instruction in instructions:
    count = 1
    if instruction.opcode == 'while':
      known = _trip_count(computations, instruction)
      count = unknown_count if known is None else known
    names = CALLED.findall(instruction.text)
    for group in CALLED_MANY.findall(instruction.text):
      names += [name.strip().lstrip('%') for name in group.split(',')]
    for name in names:
      if name in computations:
        yield name, count


def _trip_count(computations: Mapping[str, list[Instruction]], loop: Instruction) -> int | None:
  known = TRIP_COUNT.search(loop.text)
  if known is not None:
    return int(known[1])
  condition = re.search(r'condition=%?([\w.\-]+)', loop.text)
  texts = [each.text for each in computations.get(condition[1], ())] if condition else []
  constants = {match[1]: match[2] for match in map(CONSTANT.match, texts) if match}
  compared = re.findall(r'%([\w.\-]+)', next((text for text in texts if text.startswith('ROOT')), ''))
  counts = [int(constants[name]) for name in compared if name in constants] or list(map(int, constants.values()))
  return max(counts, default=None)


# ---------------------------------------------------------------------------------------------- bytes and devices
def result_bytes(kind: str, instruction: Instruction) -> float:
  """Bytes of the result on a device. One that is started gives its operands too, and they come first."""
  sizes = [BYTES[dtype] * math.prod(int(size) for size in shape.split(',') if size)
           for dtype, shape in ARRAY.findall(instruction.shape) if dtype in BYTES]
  if not instruction.opcode.endswith(START) or kind == 'all-reduce':
    return sum(sizes)
  if kind == 'collective-permute':
    return max(sizes, default=0)
  sizes = [size for size in sizes if size > 4] or sizes  # without the counters of the runtime
  return sum(sizes[len(sizes) // 2:])


def first_group(text: str, num_devices: int) -> list[int]:
  """The devices, by their number in the mesh, of the first of the groups that a collective works in."""
  if (pairs := re.search(r'source_target_pairs=\{\{([0-9,]+)\}', text)) is not None:
    return [int(device) for device in pairs[1].split(',')]
  if (listed := re.search(r'replica_groups=\{\{([0-9,]+)\}', text)) is not None:
    return [int(device) for device in listed[1].split(',')]
  if (meshed := re.search(r"replica_groups=mesh\[([^\]]*)\]([^{]*)\{([^}]*)\}", text)) is not None:
    return _first_of_axes(meshed[1], _in_order(meshed[2], num_devices), meshed[3])
  counted = re.search(r'replica_groups=\[([0-9,]+)\](<=\S+)', text)
  if counted is None:
    return list(range(num_devices))
  return _in_order(counted[2], num_devices).reshape(_numbers(counted[1]))[0].tolist()


def _numbers(text: str) -> list[int]:
  return [int(number) for number in text.split(',') if number]


def _in_order(text: str, num_devices: int) -> np.ndarray:
  """The devices in an order such as `<=[2,4]T(1,0)`: counted, as a 2 x 4 array, transposed."""
  stated = re.search(r'<=\[([0-9,]+)\](?:T\(([0-9,]+)\))?', text)
  devices = np.arange(num_devices)
  if stated is None:
    return devices
  devices = devices.reshape(_numbers(stated[1]))
  return (devices.transpose(_numbers(stated[2])) if stated[2] else devices).ravel()


def _first_of_axes(mesh: str, devices: np.ndarray, axes: str) -> list[int]:
  """The first group of `mesh['data'=2,'fsdp'=8] {'fsdp'}`. A part, `'fsdp':(2)4`, is the 4 of 2 x 4 x 1."""
  sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh)}
  devices = devices.reshape(tuple(sizes.values()))
  used = {name: (int(before or 1), int(size or sizes[name]))
          for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes)}
  for number, (name, whole) in enumerate(sizes.items()):
    before, size = used.get(name, (1, 1))
    rest = whole // (before * size) if name in used else 1
    devices = devices.take([i * rest for i in range(size)], axis=number)
  return devices.ravel().tolist()


def axes_of(group: list[int], mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
  """The mesh axes along which the devices of a group differ."""
  places = np.stack(np.unravel_index(group, tuple(mesh_shape.values())))
  return tuple(name for name, place in zip(mesh_shape, places, strict=True) if len(set(place.tolist())) > 1)
