"""Kinds of operations in a compiled program, read from its HLO text."""
import dataclasses
import re
from collections.abc import Iterable, Iterator

MATRIX = 'matrix products'
ATTENTION = 'attention: scores, softmax, values'
REDUCTION = 'sums and maxima: norms, softmax, loss'
ELEMENTWISE = 'elementwise'
COLLECTIVE = 'collectives'
COPY = 'copies, transposes, slices'
OTHER = 'other operations'
CONTAINER = ''  # what runs other operations, which stand in the trace themselves

CONTAINERS = ('while', 'call', 'conditional')
COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'ragged-all-to-all', 'collective-permute',
               'collective-broadcast', 'send', 'recv')
COPIES = ('copy', 'transpose', 'bitcast', 'bitcast-convert', 'slice', 'dynamic-slice', 'dynamic-update-slice', 'gather',
          'scatter', 'concatenate', 'pad', 'broadcast', 'reshape', 'reverse', 'iota', 'constant', 'parameter', 'tuple',
          'get-tuple-element', 'domain', 'optimization-barrier')
PRODUCTS = ('dot', 'convolution', 'ragged-dot', 'scaled-dot')
REDUCTIONS = ('reduce', 'reduce-window', 'cumsum')
OTHERS = ('sort', 'topk', 'rng', 'rng-bit-generator', 'rng-get-and-update-state', 'fft', 'cholesky', 'triangular-solve',
          'infeed', 'outfeed', 'custom-call')
PRODUCT_CALLS = re.compile('gemm|matmul|cublas|dot', re.IGNORECASE)
# Of a kernel's name, where nothing else is known of it; the first that fits.
NAMES = (
  (COLLECTIVE, re.compile('nccl|all-?_?reduce|all-?_?gather|reduce-?_?scatter|all-?_?to-?_?all', re.IGNORECASE)),
  (ATTENTION, re.compile('fmha|flash|attention', re.IGNORECASE)),
  (MATRIX, re.compile(r'gemm|nvjet|cutlass|xmma|matmul|(^|_)dot', re.IGNORECASE)),
  (COPY, re.compile('memcpy|memset|copy|transpose|slice|scatter|gather|concatenate|pad', re.IGNORECASE)),
  (REDUCTION, re.compile('reduc', re.IGNORECASE)),
  (ELEMENTWISE, re.compile('fusion|wrapped_', re.IGNORECASE)),
)
WEIGHTS = re.compile(r'/attention/(\w+/)*(query|key|value|out|\w*(down|up|norm)\w*)/')  # layers inside of an attention


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of HLO.

  scope: where in the model it comes from, such as `jit(train_step)/.../attention/query/dot_general`.
  calls: the computation that it runs.   target: of a custom call.
  """
  name: str
  opcode: str
  scope: str
  calls: str
  target: str


def kinds_of(hlo: str) -> dict[str, str]:
  """Kind of every operation of a program by its name.   hlo: `Compiled.as_text()`."""
  computations = dict(_computations(hlo))
  return {instruction.name: _kind(instruction, computations)
          for instructions in computations.values() for instruction in instructions}


def kind_of_name(name: str) -> str:
  """The kind of a kernel of which only the name is known."""
  return next((kind for kind, pattern in NAMES if pattern.search(name)), OTHER)


def _computations(hlo: str) -> Iterator[tuple[str, list[Instruction]]]:
  name = ''
  instructions: list[Instruction] = []
  for line in hlo.splitlines():
    if line.endswith('{') and not line.startswith((' ', 'HloModule')):
      name = line.removeprefix('ENTRY ').lstrip('%').split(' ', 1)[0]
      instructions = []
    elif line.startswith('}') and name:
      yield name, instructions
      name = ''
    elif name and ' = ' in line:
      instructions.append(_instruction(line))


def _instruction(line: str) -> Instruction:
  left, right = line.strip().removeprefix('ROOT ').split(' = ', 1)
  rest = right[_end_of_type(right):].lstrip()
  return Instruction(
    name=left.lstrip('%'),
    opcode=rest.partition('(')[0],
    scope=_found(r'op_name="([^"]*)"', rest),
    calls=_found(r'calls=%?([\w.\-]+)', rest),
    target=_found(r'custom_call_target="([^"]*)"', rest))


def _end_of_type(text: str) -> int:
  """Where the type ends that an instruction begins with: a word, or a tuple in parentheses."""
  if not text.startswith('('):
    return text.find(' ')
  depth = 0
  for place, character in enumerate(text):
    depth += (character == '(') - (character == ')')
    if depth == 0:
      return place + 1
  return len(text)


def _found(pattern: str, text: str) -> str:
  match = re.search(pattern, text)
  return match[1] if match else ''


def _kind(instruction: Instruction, computations: dict[str, list[Instruction]]) -> str:
  if instruction.opcode in CONTAINERS:
    return CONTAINER
  inside = [instruction, *computations.get(instruction.calls, ())]
  scopes = [each.scope for each in inside if each.scope]
  kind = _kind_of_opcodes(inside)
  is_attention = bool(scopes) and '/attention/' in scopes[0] and not WEIGHTS.search(scopes[0])
  return ATTENTION if is_attention and kind not in (COLLECTIVE, COPY) else kind


def _kind_of_opcodes(inside: Iterable[Instruction]) -> str:
  """A fusion is what its most telling operation is: a product before a sum, a sum before the rest."""
  opcodes = {re.sub('-(start|done|update)$', '', each.opcode) if each.opcode.startswith(COLLECTIVES + ('copy-',))
             else each.opcode for each in inside}
  targets = [each.target for each in inside if each.target]
  if opcodes & set(COLLECTIVES):
    return COLLECTIVE
  if opcodes & set(PRODUCTS) or any(PRODUCT_CALLS.search(target) for target in targets):
    return MATRIX
  if targets and kind_of_name(targets[0]) == ATTENTION:
    return ATTENTION
  if opcodes & set(REDUCTIONS):
    return REDUCTION
  if opcodes & set(OTHERS):
    return OTHER
  return COPY if opcodes <= {*COPIES, 'fusion'} else ELEMENTWISE
