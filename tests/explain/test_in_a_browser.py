"""The page in headless Chromium, as wide as a desktop and as a phone: it draws, and answers clicks and sliders."""
import asyncio
import dataclasses
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.config.experiment import presets
from llm_jax.data.tokenizers.byte_level import ByteTokenizer
from llm_jax.explain.explanation import explain
from llm_jax.explain.page import make_page
from llm_jax.modules.transformer import Transformer
from tests import browser

TEXT = 'def add(one, other):\n  return one'
PICTURES = os.environ.get('LLM_JAX_PICTURES')  # a folder that keeps what the browser shows


@pytest.fixture(scope='module')
def explained():
  """A model whose experts have room for half of what they are to take."""
  config = presets.mixtral(32, 2, 4, 2, 48, num_experts=4, vocab_size=257, max_length=64)
  [block] = config.pattern
  half = dataclasses.replace(block.feed_forward, capacity_factor=0.5)
  config = dataclasses.replace(config, pattern=(dataclasses.replace(block, feed_forward=half),))
  tokens = jnp.zeros((1, 4), jnp.int32)
  weights = jax.jit(lambda: Transformer(config).init(jax.random.key(0), tokens)['params'])()
  return explain('two layers', config, jax.tree.map(lambda w: 4 * w, weights), ByteTokenizer(), TEXT)


def test_choices_of_experts_without_room_add_nothing(explained):
  """A token that both of its experts dropped gets nothing from the feed-forward."""
  for layer in explained.trace.layers:
    is_dropped_T = ~layer.kept_TX.any(-1)
    is_zero_T = (layer.feed_forward_TD == 0).all(-1)
    assert 0 < is_dropped_T.sum() < len(is_dropped_T)
    np.testing.assert_array_equal(is_zero_T, is_dropped_T)


CANVAS = "document.querySelector('canvas.head').toDataURL()"
BLANK = "(() => { const c = document.querySelector('canvas.head').cloneNode(); return c.toDataURL(); })()"
TEXT_OF = "document.querySelector('{}').innerText"
CLICK_ON_HEADS = """(() => {
  const box = document.querySelector('canvas.all').getBoundingClientRect();
  const at = {clientX: box.left + box.width * 0.6, clientY: box.top + box.height * 0.25, bubbles: true};
  document.querySelector('canvas.all').dispatchEvent(new MouseEvent('click', at));
})()"""
SLIDE = """(() => {
  const slider = document.querySelector('input.temperature');
  slider.value = 0;
  slider.dispatchEvent(new Event('input'));
})()"""
WIDER = 'document.documentElement.scrollWidth - document.documentElement.clientWidth'


@pytest.mark.skipif(browser.PROGRAM is None, reason='needs Chromium')
@pytest.mark.parametrize('size', [browser.DESKTOP, browser.PHONE], ids=['desktop', 'phone'])
def test_it_draws_and_answers(explained, tmp_path, size):
  path = tmp_path / 'page.html'
  make_page([explained]).save(path)
  asyncio.run(look_at(path, size, explained))


async def look_at(path, size, explained):
  async with browser.tab() as tab:
    await tab.resize(size)
    await tab.open(path.as_uri())
    text = lambda name: tab.evaluate(TEXT_OF.format(name))
    await tab.until("document.querySelector('.about').innerText !== ''")  # the weights are unpacked
    assert len(await tab.evaluate(CANVAS)) > 1.5 * len(await tab.evaluate(BLANK))  # something is drawn
    assert await tab.evaluate("document.querySelectorAll('.strip button').length") == len(explained.trace.tokens_T)
    assert await tab.evaluate(WIDER) <= 0, 'the page is wider than its window'

    picture = await tab.evaluate(CANVAS)
    await tab.evaluate(CLICK_ON_HEADS)
    assert (await text('.about')).startswith('Layer 0, head 2') and await tab.evaluate(CANVAS) != picture
    assert await tab.evaluate("document.querySelector('select.layer').value") == '0'

    drawn = await text('.drawn')
    await tab.evaluate(SLIDE)
    assert await text('.drawn') != drawn and (await text('.settings')).startswith('temperature 0.')

    place = int(np.flatnonzero(~explained.trace.layers[0].kept_TX.all(-1))[0])
    await tab.evaluate(f"document.querySelectorAll('.strip button')[{place}].click()")
    assert 'dropped: it had no room left' in (await text('.experts')).splitlines()[0]
    assert not tab.said and tab.fetched == [path.as_uri()]
    shot = await tab.picture()
    assert shot.startswith(b'\x89PNG') and len(shot) > 10_000
    if PICTURES:
      pathlib.Path(PICTURES, f'explain_{size[0]}.png').write_bytes(shot)
