"""The pages of families say what the code is: pictures, tables, names and models."""
import pathlib
import re

import pytest

from experiments.family import FAMILIES
from launch.experiment_file import load_run
from llm_jax.config import presets
from llm_jax.config.model.architecture import Architecture, Attention, LearnedPositions, MixtureOfExperts, RoPE
from llm_jax.config.model.count import blocks, count_active_parameters, count_parameters
from llm_jax.report.model_diagram import draw

ROOT = pathlib.Path(__file__).parents[2]
INDEX = ROOT / 'docs' / 'families' / 'index.md'
PAGES = sorted(set((ROOT / 'docs' / 'families').glob('*.md')) - {INDEX})
PICTURES = sorted((ROOT / 'docs' / 'families').glob('*.svg'))

name_of = lambda path: path.name


def row(name: str) -> str:
  """A preset's line of its page's table."""
  c: Architecture = getattr(presets, name)()
  last = blocks(c)[-1]
  attention, feed_forward = last.attention, last.feed_forward
  cells = [f'`{name}`', f'{count_parameters(c):,}']
  if isinstance(feed_forward, MixtureOfExperts):
    cells.append(f'{count_active_parameters(c):,}')
    feed_forward = feed_forward.expert
  cells += [str(c.num_layers), f'{c.d_model:,}', str(attention.num_heads)]
  if isinstance(attention, Attention):
    cells += [str(attention.kv_heads), str(attention.head_size(c.d_model))]
  assert isinstance(c.positions, LearnedPositions | RoPE)
  return f'| {" | ".join([*cells, f"{feed_forward.width(c.d_model):,}", f"{c.positions.max_length:,}"])} |'


def test_every_preset_is_in_one_table():
  lines = [line for page in PAGES for line in page.read_text(encoding='utf-8').splitlines()
           if re.match(r'\| `\w+` \|', line)]
  assert sorted(lines) == sorted(map(row, presets.NAMES))


@pytest.mark.parametrize('picture', PICTURES, ids=name_of)
def test_pictures_are_those_of_the_code(picture):
  """Otherwise: python -m llm_jax.report.model_diagram NAME > docs/families/NAME.svg"""
  assert picture.read_text(encoding='utf-8') == draw(getattr(presets, picture.stem)(), picture.stem)


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_models_in_the_text_can_be_made(page):
  found = re.findall(r'^model=(presets\..*?\)),$', page.read_text(encoding='utf-8'), re.MULTILINE | re.DOTALL)
  assert len(found) >= 2 and all(isinstance(eval(code, {'presets': presets}), Architecture) for code in found)


def test_every_page_has_a_picture_of_its_own_and_is_in_the_index():
  shown = [re.findall(r'!\[[^\]]*\]\((\w+\.svg)\)', page.read_text(encoding='utf-8')) for page in PAGES]
  assert sorted(sum(shown, [])) == [picture.name for picture in PICTURES] and all(shown)
  linked = re.findall(r'\((\w+)\.md\)', INDEX.read_text(encoding='utf-8'))
  assert sorted(linked) == [page.stem for page in PAGES] == sorted(FAMILIES)


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_the_small_model_of_a_page_is_built_as_the_printed_ones(page):
  """The same types in the same places, and the same variants of them, whatever the sizes."""
  def parts(c: Architecture):
    variants = [(type(block), type(block.norm), type(block.attention), type(block.feed_forward),
                 getattr(block.attention, 'window', None) is None, getattr(block.attention, 'soft_cap', None))
                for block in c.pattern]
    return (variants, len(c.multi_token), bool(c.prefix), type(c.norm), type(c.positions), c.tied_head,
            c.logit_soft_cap, c.embedding_scale == c.d_model ** 0.5)

  text = page.read_text(encoding='utf-8')
  small = load_run(f'{ROOT}/experiments/family.py:{page.stem}').model
  named = [getattr(presets, name)() for name in re.findall(r'^\| `(\w+)` \|', text, re.MULTILINE)]
  assert named and parts(small) in [parts(model) for model in named]
