"""Needles found by readers whose reach is known."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.data import token_store
from llm_jax.evaluation.needles import find_needles
from tests.data.packing.test_needles import tokenizer  # noqa: F401


@dataclasses.dataclass(frozen=True)
class Reader:
  """Answers with what follows the same two tokens among the last `reach` ones, in place of a model."""
  reach: int
  vocab_size: int

  def apply(self, variables, x, method):
    if method == 'logits':
      return jax.nn.one_hot(x[..., 0], self.vocab_size)
    tokens_BT, here = x, jnp.arange(x.shape[1])
    same = (tokens_BT == tokens_BT[:, -1:]) & (jnp.roll(tokens_BT, 1, 1) == tokens_BT[:, -2:-1])
    same &= (here >= len(here) - self.reach) & (here < len(here) - 1)
    found = jnp.take_along_axis(tokens_BT, jnp.argmax(same, 1)[:, None] + 1, 1)
    return jnp.broadcast_to(jnp.where(same.any(1, keepdims=True), found, 0)[..., None], (*tokens_BT.shape, 1))


@pytest.mark.parametrize('reach, expected', [(200, [1.0] * 5), (110, [0.0, 0.0, 1.0, 1.0, 1.0]),
                                             (60, [0.0, 0.0, 0.0, 1.0, 1.0]), (2, [0.0] * 5)])
def test_what_is_within_reach_is_found(tokenizer, reach, expected):  # noqa: F811
  """200 tokens: the facts stand before token 1, 48, 96, 143 or 190 and some."""
  hay = np.array(tokenizer.encode(''.join(f'line {i} of the haystack\n' for i in range(200))), np.uint16)
  store = token_store.TokenStore(hay, np.array([0, len(hay)]), 0, 'x', {})
  reader = Reader(reach, tokenizer.vocab_size)
  found = find_needles(reader, {}, tokenizer, store, 200, depths=5, rows=6, batch_size=4)
  assert found == expected
