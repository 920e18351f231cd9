"""A plan's memory as a picture: one bar a stage, cut by what takes the bytes, beside what a device has."""
from llm_jax.plan.memory import Memory
from llm_jax.plan.plan import Plan, StagePlan
from llm_jax.report.svg import element, text

GIB = 2**30
WIDTH, LEFT, BAR, STEP, TOP = 720, 150, 26, 44, 64
# Field of a memory, what it is called, colour.
PARTS = (
  ('parameters', 'parameters', '#3b7ddd'), ('optimizer', 'optimizer', '#8a63d2'), ('ema', 'average', '#0a7d8c'),
  ('activations', 'activations', '#2f9e5b'), ('gradients', 'gradients', '#d08719'), ('block', 'one block', '#c2553a'),
  ('loss', 'loss', '#b5157a'),
)
STYLE = ("text { font: 12px system-ui, sans-serif; fill: #1d1f24; } .faint { fill: #636a75; } "
         ".limit { stroke: #d9480f; stroke-width: 2; stroke-dasharray: 5 4; } "
         "@media (prefers-color-scheme: dark) { text { fill: #e6e8ec; } .faint { fill: #9aa2ae; } }")


def plan_picture(plan: Plan) -> str:
  """An SVG file. Stages with adapters have no bar."""
  stages = [stage for stage in plan.stages if stage.memory is not None]
  most = max([plan.capacity or 0.0, *(stage.memory.peak for stage in stages if stage.memory)], default=1.0)
  scale = (WIDTH - LEFT - 90) / most
  shapes = [element('style', STYLE), text('', 12, 22, f'Memory of one device: {plan.topology or plan.devices}')]
  shapes += _legend()
  for i, stage in enumerate(stages):
    shapes += _bar(stage, TOP + STEP * i, scale)
  height = TOP + STEP * len(stages) + 20
  if plan.capacity is not None:
    x = LEFT + plan.capacity * scale
    shapes.append(element('line', class_='limit', x1=f'{x:.1f}', y1=TOP - 8, x2=f'{x:.1f}', y2=height - 18))
    shapes.append(text('faint', f'{x:.1f}', height - 4, f'{plan.capacity / GIB:.1f} GiB', 'end'))
  return element('svg', ''.join(shapes), xmlns='http://www.w3.org/2000/svg', viewBox=f'0 0 {WIDTH} {height}',
                 role='img')


def _legend() -> list[str]:
  shapes, x = [], 12
  for _, name, colour in PARTS:
    shapes.append(element('rect', x=x, y=34, width=10, height=10, fill=colour))
    shapes.append(text('faint', x + 15, 43, name))
    x += 32 + 7 * len(name)
  return shapes


def _bar(stage: StagePlan, y: int, scale: float) -> list[str]:
  memory = stage.memory
  assert memory is not None
  shapes, x = [text('', 12, y + 17, stage.name[:20])], float(LEFT)
  for field, name, colour in PARTS:
    if not is_at_peak(memory, field):
      continue
    width = getattr(memory, field) * scale
    title = element('title', f'{name} {getattr(memory, field) / GIB:.2f} GiB')
    shapes.append(element('rect', title, x=f'{x:.1f}', y=y, width=f'{width:.1f}', height=BAR, fill=colour))
    x += width
  return [*shapes, text('', f'{x + 6:.1f}', y + 17, f'{memory.peak / GIB:.1f} GiB')]


def is_at_peak(memory: Memory, field: str) -> bool:
  """Whether bytes of a kind are there at the fullest moment: in the loss, or in the backward pass of a block."""
  return field != ('block' if memory.loss > memory.block else 'loss')
