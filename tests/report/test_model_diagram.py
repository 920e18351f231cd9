"""Pictures are well-formed, keep to themselves, and show what the configuration says, where it says it."""
import dataclasses
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from llm_jax.config import presets
from llm_jax.config.model.architecture import (
  MLP,
  Architecture,
  Attention,
  Block,
  LayerNorm,
  LinearScaling,
  NTKScaling,
  OutputNormBlock,
  ParallelBlock,
  PostNormBlock,
  RMSNorm,
  RoPE,
  SandwichBlock,
  SinusoidalPositions,
)
from llm_jax.report.model_diagram import draw, main

SVG = '{http://www.w3.org/2000/svg}'


def stack(kind, positions=None) -> list[str]:
  """The kinds of the boxes of a one-block model, from the bottom up."""
  norm = None if kind is PostNormBlock else LayerNorm()
  model = Architecture(11, 8, 4, pattern=(kind(Attention(2), MLP(), LayerNorm()),),
                       positions=positions or SinusoidalPositions(), norm=norm, tied_head=True)
  boxes = [shape for shape in ElementTree.fromstring(draw(model)).iter(f'{SVG}rect') if 'box' in shape.get('class')]
  order = sorted(boxes, key=lambda shape: -float(shape.get('y')))
  return [shape.get('class').split()[0] for shape in order if 'positions' not in shape.get('class')]


def words(picture: str) -> list[str]:
  return [text.text for text in ElementTree.fromstring(picture).iter(f'{SVG}text')]


@pytest.mark.parametrize('name', presets.NAMES)
def test_every_preset_has_a_picture(name):
  """All shapes lie inside the picture; nothing is loaded from elsewhere, and nothing runs."""
  picture = draw(getattr(presets, name)(), name)
  root = ElementTree.fromstring(picture)
  left, top, width, height = map(float, root.get('viewBox').split())
  for shape in root.iter(f'{SVG}rect'):
    x, y, w, h = (float(shape.get(key)) for key in ('x', 'y', 'width', 'height'))
    assert left <= x and x + w <= left + width and top <= y and y + h <= top + height
  for text in root.iter(f'{SVG}text'):
    assert left <= float(text.get('x')) <= left + width and top < float(text.get('y')) < top + height
  assert not re.search(r'href|<script|url\((?!#head)|@import|@font-face', picture)
  assert picture.count('http') == 1 and name in words(picture)
  assert 'nan' not in picture and 'None' not in picture


@pytest.mark.parametrize('name', presets.NAMES)
def test_lines_fit_their_boxes(name):
  """By the width of a letter, 6.1 at this size: generous for sans-serif fonts."""
  for text in ElementTree.fromstring(draw(getattr(presets, name)(), name)).iter(f'{SVG}text'):
    if text.get('class') in ('', 'middle'):
      assert len(text.text) * 6.1 <= (340 if text.get('class') else 288), text.text


def test_norms_stand_where_the_type_says():
  ends = lambda *middle: ['table', *middle, 'table']
  assert stack(Block) == ends('norm', 'attention', 'norm', 'dense', 'norm')
  assert stack(PostNormBlock) == ends('attention', 'norm', 'dense', 'norm')
  assert stack(OutputNormBlock) == ends('attention', 'norm', 'dense', 'norm', 'norm')
  assert stack(ParallelBlock) == stack(Block)
  assert stack(SandwichBlock) == ends('norm', 'attention', 'norm', 'norm', 'dense', 'norm', 'norm')


def test_what_is_said():
  said = words(draw(presets.deepseek_v3()))
  assert {'× 3', '× 58', 'Multi-head latent attention', 'Mixture of experts', '8 of 256 experts by a sigmoid router',
          'logits of token t + 2', 'YaRN scaling × 40'} <= set(said)
  assert any('671B parameters, 37.6B for a token' in line for line in said)
  said = words(draw(presets.gemma2_27b()))
  assert {'× 23', 'Grouped-query attention', 'window of 4,096 tokens · soft cap 50',
          'RMSNorm, times 1 + scale'} <= set(said)
  assert any(line.endswith('tied to the embedding · soft cap 30') for line in said)
  assert 'Multi-query attention' in words(draw(presets.gemma_2b()))
  assert 'Multi-head attention' in words(draw(presets.gemma_7b()))
  for scaling, line in ((LinearScaling(2.0), 'linear scaling × 2'), (NTKScaling(4.0), 'NTK-aware scaling × 4')):
    assert line in words(draw(presets.llama(8, 2, 2, scaling=scaling)))


def test_icons_follow_the_window():
  """A band is drawn with another path than a triangle: GPT-3 has one of each, GPT-2 a triangle, Mistral a band."""
  count = lambda model: [draw(model).count(end) for end in ('v30h30z', 'v11l19 19h11z')]
  assert [count(model()) for model in (presets.gpt2_124m, presets.mistral_7b, presets.gpt3_125m)] == [
    [1, 0], [0, 1], [1, 1]]


def test_experts_are_counted_out():
  picture = ElementTree.fromstring(draw(presets.deepseek_v3()))
  squares = {kind: sum(path.get('d').count('z') for path in picture.iter(f'{SVG}path')
                       if path.get('class') == f'experts {kind}') for kind in ('pale', 'full')}
  assert squares == {'pale': 248, 'full': 8}
  alone = dataclasses.replace(presets.mixtral_8x7b().pattern[0].feed_forward, num_experts=3, top_k=3)
  block = Block(Attention(2), alone, RMSNorm())
  draw(Architecture(11, 8, 1, pattern=(block,), positions=RoPE(), norm=None, tied_head=True))


def test_titles_are_text():
  assert words(draw(presets.gpt2_124m(), '<a> & "b"'))[-2] == '<a> & "b"'


def test_command(capsys):
  main(['gpt2_124m'])
  assert capsys.readouterr().out == draw(presets.gpt2_124m(), 'gpt2_124m')
  for arguments in ([], ['gpt5'], ['gpt2_124m', 'gpt2_355m'], ['llama']):
    with pytest.raises(SystemExit) as caught:
      main(arguments)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count('\n') == 1 and 'llama3_8b' in error


def test_the_command_starts_without_jax():
  code = ('import sys; from llm_jax.report import model_diagram; model_diagram.main(["llama3_8b"]); '
          'sys.exit(any(name in sys.modules for name in ("jax", "numpy", "flax")))')
  subprocess.run([sys.executable, '-c', code], check=True, capture_output=True)
