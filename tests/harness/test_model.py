"""What ends an answer to lm-evaluation-harness."""
import pytest

from llm_jax.data.tokenizers.byte_level import RankTokenizer
from llm_jax.harness.model import HarnessModel, Reader
from llm_jax.harness.text import HarnessText
from llm_jax.modules.execution import Execution

START, END, EOT = 256, 257, 258
NAMES = {'<|im_start|>': START, '<|im_end|>': END, '<|endoftext|>': EOT}


@pytest.fixture(scope='module')
def model():
  tokenizer = RankTokenizer({bytes([i]): i for i in range(256)}, r'\S+|\s+', tuple(NAMES), '<|endoftext|>')
  assert tokenizer.special_ids == NAMES
  text = HarnessText(tokenizer, None, True, 259, 256)
  config: object = None  # nothing is generated
  return HarnessModel(text, Reader(config, None, Execution(), (EOT,)))


@pytest.mark.parametrize('tokens, stops, expected', [
  ([*b'ab', END, *b'cd'], ('e', '\n'), ('abcd', False)),  # no letter of a control token's name is a stop
  ([*b'ab', END, *b'cde'], ('e', '\n'), ('abcd', True)),
  ([*b'ab', END, *b'cde'], ('<|im_end|>', 'e'), ('ab', True)),  # but its whole name is
  ([*b'ab', EOT], ('b',), ('a', True)),
  ([*b'ab', EOT], ('c',), ('ab', False)),
  ([END], ('<|im_end|>',), ('', True)),
  ([*b'a<|im_end|>b'], ('<|im_end|>',), ('a', True)),  # written in letters it is a stop too
  ([*b'ab'], (), ('ab', False)),
])
def test_where_an_answer_ends(model, tokens, stops, expected):
  assert model._cut(tokens, stops) == expected
