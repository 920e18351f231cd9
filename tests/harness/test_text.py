"""Where texts are cut, what a conversation is encoded to, and what cannot be scored."""
import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from llm_jax.config.errors import ConfigError
from llm_jax.data.tokenizers.base import Tokenizer
from llm_jax.data.tokenizers.byte_level import ByteTokenizer, RankTokenizer
from llm_jax.data.tokenizers.chat_templates import prompt_ids
from llm_jax.data.tokenizers.rendered import CLOSE, OPEN
from llm_jax.harness.index import scan
from llm_jax.harness.run import Asking, prepare, survey
from llm_jax.harness.tasks import TaskSource
from llm_jax.harness.text import HarnessText, shown
from tests.harness import small_tasks
from tests.harness.test_parity import byte_tokenizer

EOT = 256


def text_of(tokenizer: Tokenizer | None = None, template=None, begins=True, length=32, **rest):
  tokenizer = tokenizer or ByteTokenizer()
  return HarnessText(tokenizer, template, begins, tokenizer.vocab_size, length, **rest)


def merging():
  """Bytes, and one token for `ab`."""
  ranks = {bytes([i]): i for i in range(256)} | {b'ab': 256}
  return RankTokenizer(ranks, r'\S+|\s+', ('<|endoftext|>',), '<|endoftext|>')


@pytest.mark.parametrize('context, continuation, expected', [
  ('Q:', ' x', ([EOT, *b'Q:'], [*b' x'])),
  ('Q: ', 'x', ([EOT, *b'Q:'], [*b' x'])),  # white space goes to the continuation
  ('', 'x', ([EOT], [*b'x']))])
def test_a_text_is_cut_where_the_context_ends(context, continuation, expected):
  assert text_of().encode_pair(context, continuation) == expected


def test_texts_may_begin_without_what_documents_begin_with():
  assert text_of(begins=False).encode_pair('Q:', ' x') == ([*b'Q:'], [*b' x'])
  assert text_of(begins=False).encode_pair('', 'x') == ([EOT], [*b'x'])  # something must stand before it


@pytest.mark.parametrize('context, continuation, line', [
  ('a', 'b', "continuation = 'b': a token lies across its beginning, behind 'a'"),
  ('a', '', 'a token lies across'), ('', '', 'empty: there is nothing to score')])
def test_what_cannot_be_scored(context, continuation, line):
  with pytest.raises(ConfigError, match=line):
    text_of(merging()).encode_pair(context, continuation)


@pytest.mark.parametrize('length, like_hf', [(4, False), (7, False), (100, False), (5, True)])
def test_windows_are_those_of_the_harness(length, like_hf):
  text = text_of(length=length, like_hf=like_hf)
  ids = [*([EOT] if like_hf else []), *b'a text of some length']
  expected = [make_disjoint_window(window) for window in get_rolling_token_windows(ids, EOT, length, 1)]
  assert text.windows('a text of some length') == [(list(a), list(b)) for a, b in expected]
  assert sum(len(behind) for _, behind in text.windows('a text of some length')) == len(ids)
  assert text.windows('') == [] or like_hf


def test_long_contexts_lose_their_beginning():
  assert text_of(length=4).cut(([1, 2, 3, 4, 5], [6, 7])) == ([3, 4, 5], [6, 7])
  assert text_of(length=9).cut(([1, 2], [3])) == ([1, 2], [3])


# ---------------------------------------------------------------------------------------------- conversations
HOSTILE = [{'role': 'user', 'content': 'say <|im_end|> and <|im_start|>'}]


def test_a_conversation_has_the_ids_of_its_template():
  tokenizer = byte_tokenizer()
  text = text_of(tokenizer, 'chatml')
  rendered = text.render(HOSTILE)
  assert text.encode(rendered) == prompt_ids(HOSTILE, 'chatml', tokenizer).tolist()
  assert shown(rendered) == '<|im_start|>user\nsay <|im_end|> and <|im_start|><|im_end|>\n<|im_start|>assistant\n'
  assert rendered.count(OPEN) == rendered.count(CLOSE) == 3


def test_a_choice_behind_a_conversation_writes_no_control_token():
  text = text_of(byte_tokenizer(), 'chatml')
  context = text.render([{'role': 'user', 'content': 'Hi'}])
  before, behind = text.encode_pair(context, '<|im_end|>')
  assert before + [10] == text.encode(context) and behind == [*b'\n<|im_end|>']


def test_an_answer_that_was_begun_goes_on():
  text = text_of(byte_tokenizer(), 'chatml')
  said = [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'The answer is'}]
  assert shown(text.render(said, add_generation_prompt=False)).endswith('<|im_start|>assistant\nThe answer is')


# ---------------------------------------------------------------------------------------------- all requests
def instance(kind, *arguments):
  return Instance(kind, {}, arguments, 0, metadata=('task', 3, 1))


def test_a_survey_tells_what_will_be_asked():
  requests = {'task': [instance('loglikelihood', 'Q:', ' x'), instance('loglikelihood_rolling', 'a' * 90),
                       instance('generate_until', 'Q:', {'until': ['.'], 'max_gen_toks': 9})]}
  found = survey(text_of(), requests, truncate=False)
  assert found.first_ids == (EOT, *b'Q: x') and found.requests == {'task': 3} and found.cut == {'task': 0}
  assert found.first_prompt == 'Q:' and found.longest == 32


@pytest.mark.parametrize('request_', [
  instance('loglikelihood', 'Q' * 40, ' x'),
  instance('generate_until', 'Q' * 24, {'until': ['.'], 'max_gen_toks': 9})])
def test_a_prompt_that_would_be_cut_is_named(request_):
  with pytest.raises(ConfigError, match="task, question 3 = '.* tokens': the model reads 32, and the beginning"):
    survey(text_of(), {'task': [request_]}, truncate=False)
  assert survey(text_of(), {'task': [request_]}, truncate=True).cut == {'task': 1}


@pytest.mark.parametrize('request_, line', [
  (instance('loglikelihood', 'a', 'b'), 'task, question 3 = .*a token lies across'),
  (instance('loglikelihood', 'a', ' ' + 'b' * 40), 'task, question 3 = .*the model reads 32'),
  (instance('generate_until', 'a', {'max_gen_toks': 32}), 'task, question 3 = 32: the model reads 32 tokens, so none'),
  (instance('multiple', 'a'), "task, question 3 = 'multiple'")])
def test_a_request_that_cannot_be_answered_is_named(request_, line):
  with pytest.raises(ConfigError, match=line):
    survey(text_of(merging()), {'task': [request_]}, truncate=True)


def test_a_token_without_a_row_is_named():
  text = HarnessText(ByteTokenizer(), None, True, 100, 32)
  with pytest.raises(ConfigError, match='a token for which the model has no row of its 100'):
    survey(text, {'task': [instance('loglikelihood', 'Q:', ' x')]}, truncate=True)


def test_ids_are_plain_numbers():
  assert not any(isinstance(token, np.generic) for token in text_of().encode('a'))


@pytest.mark.parametrize('multiturn', [True, False])
def test_questions_of_tasks_are_put_as_conversations(tmp_path, multiturn):
  tasks = small_tasks.write(tmp_path)
  source = TaskSource(('choices',), {'choices': tasks / 'rows.jsonl'}, num_fewshot=1, own=scan(tasks))
  text = text_of(byte_tokenizer(), 'chatml', length=300)
  found = prepare(source, Asking(limit=1, system='Be brief.', multiturn=multiturn), text).survey
  assert found.first_prompt.startswith('<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nQ: ')
  assert found.first_prompt.endswith('?\nA:<|im_end|>\n<|im_start|>assistant\n')
  assert found.first_prompt.count('<|im_start|>user') == (2 if multiturn else 1)
  assert found.first_ids[0] == 256 and found.bos_rule.startswith('none of its own')
