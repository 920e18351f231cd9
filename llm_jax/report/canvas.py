"""The shapes of `model_diagram.py`. The picture grows upwards from y = 0; `Canvas.y` is its top."""
from collections.abc import Sequence
from xml.sax.saxutils import escape

BOX, GAP = 340, 14                       # width of a box, length of a short arrow
LEFT = 16                                # of a block's frame
STREAM = LEFT + 34 + BOX // 2            # x of the residual stream
RESIDUAL, ROTARY = LEFT + 16, LEFT + 52 + BOX  # x of the lanes left and right of the boxes
OUTPUT = LEFT + 43 + BOX                 # x of a lane between the boxes and that of the rotary positions
FRAME = 68 + BOX                         # width of a block's frame
SIDE = LEFT + FRAME + 36                 # x of what stands beside the blocks
SIDE_BOX = 196

STYLE = """
svg { color: #1f2328; font-family: system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; }
text { fill: currentColor; font-size: 11.5px; }
.title { font-size: 17px; font-weight: 650; } .name { font-size: 13px; font-weight: 600; }
.middle { text-anchor: middle; } .faint { opacity: .75; }
.wire, .arrow, .plus { fill: none; stroke: currentColor; stroke-width: 1.3; stroke-linejoin: round; }
.arrow { marker-end: url(#head); } .dashed { stroke-dasharray: 3 3; opacity: .7; }
.frame { fill: currentColor; fill-opacity: .035; stroke: currentColor; stroke-opacity: .3; }
.box { fill: var(--hue); fill-opacity: .16; stroke: var(--hue); stroke-width: 1.3; }
.thin { fill: none; stroke: var(--hue); } .full { fill: var(--hue); } .pale { fill: var(--hue); fill-opacity: .3; }
.table { --hue: #2f9e5b; } .attention { --hue: #3b7ddd; } .dense { --hue: #d08719; } .experts { --hue: #c2553a; }
.norm { --hue: #868e99; } .positions { --hue: #8a63d2; }
@media (prefers-color-scheme: dark) { svg { color: #e6edf3; } }
""".strip()


class Canvas:
  """Boxes stacked on the residual stream, from the bottom up."""

  def __init__(self):
    self.y, self.top, self.width = 0.0, 0.0, LEFT + FRAME + 16
    self.panels = SIDE + 10.0    # right of the newest panel
    self.shapes: list[str] = []
    self.last = (0.0, 0.0)       # bottom and top of the newest box
    self.rotary: list[float] = []  # heights that the rotary lane points at
    self.source = 0.0            # where that lane starts

  # ---------------------------------------------------------------------------------------------- the stream
  def label(self, words: str) -> None:
    self._text(STREAM, self.y - 5, words, 'middle faint')
    self.y -= 18

  def line(self, length: float) -> None:
    self._path(f'M{STREAM} {self.y:g}v{-length:g}', 'wire')
    self.y -= length

  def arrow(self) -> None:
    self._path(f'M{STREAM} {self.y:g}v{2 - GAP}', 'arrow')
    self.y -= GAP

  def residual(self) -> float:
    """Lets the stream go on upwards, and says where a branch leaves it."""
    self.line(GAP / 2)
    split = self.y
    self.arrow()
    return split

  def beside(self) -> float:
    """Leaves the newest box's output for a sum above the next box, which reads the stream that runs left of the boxes.
    Returns where that output is."""
    self.line(GAP / 2)
    out = self.y
    self.y -= GAP
    self._path(f'M{RESIDUAL} {self.y:g}H{STREAM}', 'wire')
    self.arrow()
    return out

  def plus(self, split: float, outputs: Sequence[float] = ()) -> None:
    """The sum of the stream and the branch that left at `split`, which runs left of the boxes, and of the outputs that
    `beside` left, which run right of them."""
    middle = self.y - 8
    for out in outputs:
      self._path(f'M{STREAM} {out:g}H{OUTPUT - 8}q8 0 8 -8V{middle + 8:g}q0 -8 -8 -8H{STREAM + 10}', 'arrow')
    self._path(f'M{STREAM} {split:g}H{RESIDUAL + 8}q-8 0 -8 -8V{middle + 8:g}q0 -8 8 -8H{STREAM - 10}', 'arrow')
    self._sum(middle)

  def _sum(self, middle: float) -> None:
    self.shapes.append(f'<circle class="plus" cx="{STREAM}" cy="{middle:g}" r="8"/>')
    self._path(f'M{STREAM - 4} {middle:g}h8M{STREAM} {middle - 4:g}v8', 'wire')
    self.y = middle - 8

  # ---------------------------------------------------------------------------------------------- boxes
  def box(self, kind: str, name: str, lines: list[str], icon: str = '', below: float = 0) -> None:
    """A titled box.   icon: what is drawn at its left.   below: room left under the lines."""
    height = (30 if lines else 24) + 15 * len(lines) - (4 if lines else 0) + below
    if icon:
      height = max(height, 44)
    x, y = STREAM - BOX / 2, self.y - height
    self._rect(kind, x, y, BOX, height)
    left, style = (x + 52, '') if icon else (STREAM, ' middle')
    text = y + 17 + (height - below - 26 - 15 * len(lines)) / 2
    self._text(left, text + 2, name, 'name' + style)
    for i, words in enumerate(lines, 1):
      self._text(left, text + 2 + 15 * i, words, style.strip())
    if icon:
      self._icon(kind, icon, x + 12, y + (height - 30) / 2)
    self.last, self.y = (self.y, y), y

  def norm(self, name: str) -> None:
    self._rect('norm', STREAM - BOX / 2 + 60, self.y - 22, BOX - 120, 22)
    self._text(STREAM, self.y - 7, name, 'middle')
    self.y -= 22

  def frame(self, bottom: float) -> None:
    """Around all that was drawn since `bottom`, and behind it."""
    self.shapes.insert(0, f'<rect class="frame" x="{LEFT}" y="{self.y:g}" width="{FRAME}" height="{bottom - self.y:g}" '
                          'rx="12"/>')
    self._path(f'M{STREAM} {self.y:g}v{-GAP / 2:g}', 'wire')
    self.y -= GAP / 2

  def bracket(self, bottom: float, words: str) -> None:
    """Right of all that was drawn since `bottom`."""
    x, top = LEFT + FRAME + 8, self.y + GAP / 2
    self._path(f'M{x} {bottom:g}h6V{top:g}h-6', 'wire')
    self._text(x + 13, (bottom + top) / 2 + 4, words, 'name')
    self._extend(x + 60)

  def positions(self, name: str, lines: list[str], added: bool) -> None:
    """Beside the stream: added to it, or led to the right of the boxes, where `rotate` takes it."""
    self.arrow() if added else self.line(GAP)
    middle, height = self.y - 8, 24 + 15 * len(lines)
    y = middle - height / 2 + (0 if added else 24)
    self._rect('positions', SIDE, y, SIDE_BOX, height)
    self._text(SIDE + SIDE_BOX / 2, y + 17, name, 'name middle')
    for i, words in enumerate(lines, 1):
      self._text(SIDE + SIDE_BOX / 2, y + 17 + 15 * i, words, 'middle')
    self._extend(SIDE + SIDE_BOX)
    if added:
      self._path(f'M{SIDE} {middle:g}H{STREAM + 10}', 'arrow')
      self._sum(middle)
      self.line(GAP / 2)
    else:
      self.source = y + height / 2

  def rotate(self) -> None:
    """An arrow from the rotary positions into the newest box."""
    self.rotary.append(sum(self.last) / 2)

  # ---------------------------------------------------------------------------------------------- what boxes show
  def heads(self, queries: int, keys: int) -> None:
    """Sixteen strokes for the query heads, joined as they share key and value heads; keys=0: one vector for all."""
    x, y, count = STREAM + BOX / 2 - 84, self.last[1] + 6, min(queries, 16)
    step = 74 / count
    share = count if keys <= 1 else max(1, min(round(queries / keys), count // 2))
    shapes = []
    for first in range(0, count, share):
      members = range(first, min(first + share, count))
      middle = x + step * (sum(members) / len(members) + 0.5)
      shapes += [f'M{x + step * (i + 0.5):.1f} {y:g}v4L{middle:.1f} {y + 11:g}' for i in members]
      shapes.append(f'M{middle:.1f} {y + 11:g}v4')
    if keys == 0:
      shapes.append(f'M{x + 20:g} {y + 15:g}h34')
    self._path(''.join(shapes), 'attention thin')

  @staticmethod
  def _grid(experts: int) -> tuple[int, int, float]:
    """Columns, rows and side of the squares."""
    columns = min(experts, 64)
    return columns, -(-experts // columns), min(11.0, (BOX - 64) / columns)

  def experts_height(self, experts: int) -> float:
    _, rows, side = self._grid(experts)
    return rows * side + 6

  def experts(self, count: int, chosen: int, groups: int, top_groups: int) -> None:
    """A square for each expert; as many as a token uses are full, within as many groups as it may use."""
    columns, rows, side = self._grid(count)
    x, y, size = STREAM - BOX / 2 + 52, self.last[0] - rows * side - 8, count // groups
    places = {(j % top_groups * groups // top_groups) * size + (j // top_groups * 7 + j * 5 + 2) % size
              for j in range(chosen)}
    spare = (i for i in range(count) if i not in places)
    while len(places) < chosen:
      places.add(next(spare))
    at = lambda i: f'M{x + i % columns * side:.1f} {y + i // columns * side:.1f}h{side - 1.2:.1f}v{side - 1.2:.1f}' \
                   f'h{1.2 - side:.1f}z'
    self._path(''.join(at(i) for i in range(count) if i not in places), 'experts pale')
    self._path(''.join(at(i) for i in sorted(places)), 'experts full')

  def _icon(self, kind: str, icon: str, x: float, y: float) -> None:
    """30 by 30. Attention: which keys (across) a query (down) sees. Feed-forward: its widths, in to out."""
    if icon in ('causal', 'band'):
      seen = f'M{x:g} {y:g}v30h30z' if icon == 'causal' else f'M{x:g} {y:g}v11l19 19h11z'
      self._path(seen, f'{kind} full')
      self._path(f'M{x:g} {y:g}h30v30h-30z', f'{kind} thin')
    elif icon == 'mlp':
      self._path(f'M{x + 8:g} {y + 30:g}L{x:g} {y + 15:g}L{x + 8:g} {y:g}h14l8 15l-8 15z', f'{kind} pale')
    elif icon == 'gated':
      self._path(f'M{x + 1:g} {y + 30:g}v-13h10v13zM{x + 19:g} {y + 30:g}v-13h10v13z', f'{kind} pale')
      self._path(f'M{x + 6:g} {y + 17:g}V{y + 12:g}q0 -5 4 -5M{x + 24:g} {y + 17:g}V{y + 12:g}q0 -5 -4 -5'
                 f'M{x + 12:g} {y + 4:g}l6 6m0 -6l-6 6', f'{kind} thin')
      self.shapes.append(f'<circle class="{kind} thin" cx="{x + 15:g}" cy="{y + 7:g}" r="5"/>')
    else:
      self._path(''.join(f'M{x + 15:g} {y + 30:g}Q{x + 15:g} {y + 16:g} {x + end:g} {y:g}' for end in range(1, 30, 7)),
                 f'{kind} thin')
      self.shapes.append(f'<circle class="{kind} full" cx="{x + 15:g}" cy="{y + 27:g}" r="3"/>')

  def branch(self) -> tuple[float, float]:
    """A place on the stream, for `panel` to start from."""
    self.line(GAP / 2)
    return STREAM, self.y

  def panel(self, start: tuple[float, float], beside: str, steps: list[tuple[str, str]], last: list[tuple[str, str]],
            out: str) -> tuple[float, float]:
    """A smaller stack of kinds and words, on the right, fed from `start` and from what stands beside it.   Returns the
    place between `steps` and `last`."""
    x, y = self.panels + 30, start[1] + (len(steps + last) - 1) * (24 + GAP)
    middle, low = x + SIDE_BOX / 2, y + GAP + 8
    self._path(f'M{start[0]:g} {start[1]:g}H{x - 20:g}q8 0 8 8V{low - 8:g}q0 8 8 8H{middle - 38:g}q8 0 8 -8V{y + 2:g}',
               'arrow')
    self._path(f'M{middle + 30:g} {low:g}V{y + 2:g}', 'arrow')
    self._text(middle + 30, low + 13, beside, 'middle faint')
    for i, (kind, words) in enumerate(steps + last):
      self._rect(kind, x, y - 24, SIDE_BOX, 24)
      self._text(middle, y - 8, words, 'middle')
      self._path(f'M{middle:g} {y - 24:g}v{-GAP + 2:g}', 'arrow')
      y -= 24 + GAP
      if i == len(steps) - 1:
        end = middle, y + GAP / 2
    self._text(middle, y - 5, out, 'middle faint')
    self.panels = x + SIDE_BOX
    self._extend(self.panels)
    self.top = min(self.top, y - 18)
    return end

  # ---------------------------------------------------------------------------------------------- the file
  def svg(self, title: str, subtitle: str) -> str:
    """The whole file, with the title above all that was drawn."""
    if self.rotary:
      lane = f'M{SIDE} {self.source:g}H{ROTARY + 8}q-8 0 -8 -8V{min(self.rotary):g}'
      self._path(lane, 'wire dashed')
      for y in self.rotary:
        self._path(f'M{ROTARY} {y:g}H{STREAM + BOX / 2 + 2:g}', 'arrow')
    top = min(self.top, self.y)
    if title:
      self._text(LEFT, top - 34, title, 'title')
    self._text(LEFT, top - 14, subtitle, 'faint')
    width, height = self.width + 14, 66 - top + 8
    return '\n'.join([
      f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
      f'viewBox="0 {top - 58:g} {width:g} {height:g}" role="img">',
      f'<title>{escape(": ".join(filter(None, (title, subtitle))))}</title>',
      f'<style>\n{STYLE}\n</style>',
      '<defs><marker id="head" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
      '<path d="M0 0L8 4L0 8z" fill="currentColor"/></marker></defs>',
      *self.shapes, '</svg>', ''])

  def _extend(self, right: float) -> None:
    self.width = max(self.width, right)

  def _text(self, x: float, y: float, words: str, style: str) -> None:
    self.shapes.append(f'<text class="{style}" x="{x:g}" y="{y:g}">{escape(words)}</text>')

  def _path(self, shape: str, style: str) -> None:
    self.shapes.append(f'<path class="{style}" d="{shape}"/>')

  def _rect(self, kind: str, x: float, y: float, width: float, height: float) -> None:
    self.shapes.append(f'<rect class="{kind} box" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"/>')
