"""Functions that a model calls while it answers: what is a call, what comes back, and what is learnt."""
import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from llm_jax.config.errors import ConfigError
from llm_jax.config.rewards import Exact
from llm_jax.config.rollout import Rollout
from llm_jax.data.prompts import Prompt
from llm_jax.data.tokenizers import chat_templates
from llm_jax.data.tokenizers.byte_level import ByteTokenizer
from llm_jax.decode.sampling import Sampling
from llm_jax.rollout.buffer import RolloutBuffer
from llm_jax.rollout.numbers import answer_numbers, mismatch_numbers
from llm_jax.rollout.rewards import Rewards
from llm_jax.rollout.sampling import Answer
from llm_jax.rollout.tools import MOST_CHARACTERS, Call, Tools, calls_in
from llm_jax.rollout.turns import TurnSampler, filled

TOKENIZER = ByteTokenizer()
END = TOKENIZER.eot
FUNCTIONS = '''
import os, time

def add(a, b):
  """Prints too, which is no result."""
  print('adding')
  return a + b

def words(text):
  return sorted(text.split())

def greet(name='you'):
  return f'hello {name}'

def slow(seconds):
  time.sleep(seconds)
  return 'late'

def end():
  os._exit(3)

def long():
  return 'x' * 10_000
'''
NAMES = ('add', 'words', 'greet', 'slow', 'end', 'long')


@pytest.fixture(scope='module')
def tools(tmp_path_factory):
  path = tmp_path_factory.mktemp('tools') / 'tools.py'
  path.write_text(FUNCTIONS)
  made = Tools([f'{path}:{name}' for name in NAMES], seconds=0.5)
  yield made
  made.close()


# ---------------------------------------------------------------------------------------------- calls
def test_calls_are_json_between_tags():
  """As Qwen and Hermes write them, and with Llama 3.1's word for the arguments."""
  text = ('Let me see.\n<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>\n'
          '<tool_call>{"name": "greet", "parameters": {}}</tool_call><tool_call>{"name": "greet"}</tool_call>')
  assert calls_in(text) == [Call('add', {'a': 2, 'b': 3}), Call('greet', {}), Call('greet', {})]
  assert calls_in('{"name": "add"} <tool_call> not closed') == []


@pytest.mark.parametrize('body, problem', [
  ('add(2, 3)', 'error: the call is no JSON'), ('[1]', 'error: write a call as'),
  ('{"arguments": {}}', 'error: write a call'),
  ('{"name": "add", "arguments": [2, 3]}', 'error: give the arguments by their names'),
])
def test_what_is_no_call_is_said_to_the_model(body, problem, tools):
  [call] = calls_in(f'<tool_call>{body}</tool_call>')
  assert tools.results([call]).startswith(problem)


@pytest.mark.parametrize('call, result', [
  (Call('add', {'a': 2, 'b': 3.5}), '5.5'), (Call('words', {'text': 'to be é'}), '["be", "to", "\\u00e9"]'),
  (Call('greet', {'name': 'Ann'}), 'hello Ann'),
  (Call('add', {'a': 2}), "error: TypeError: add() missing 1 required positional argument: 'b'"),
  (Call('add', {'a': 2, 'b': 'x'}), "error: TypeError: unsupported operand type(s) for +: 'int' and 'str'"),
  (Call('gone', {}), "error: there is no function 'gone', only add, words, greet, slow, end, long"),
  (Call('slow', {'seconds': 30}), 'error: it took longer than 0.5 s'),
  (Call('end', {}), 'error: the function ended its process'),
  (Call('slow', {'seconds': 0.01}), 'late'),
])
def test_results_are_text(call, result, tools):
  """Also after a call that had to be ended."""
  assert tools.results([call]) == result
  assert tools.results([Call('add', {'a': 1, 'b': 1}), Call('greet', {})]) == '2\nhello you'


def test_a_long_result_is_cut(tools):
  assert len(tools.results([Call('long', {})])) == MOST_CHARACTERS


@pytest.mark.parametrize('body, message', [
  ('import nothing_of_that_name', 'cannot be imported: ModuleNotFoundError'),
  ('x = 1', 'cannot be imported: AttributeError'),
])
def test_functions_that_cannot_be_imported(body, message, tmp_path):
  (tmp_path / 'bad.py').write_text(body)
  with pytest.raises(ConfigError, match=message):
    Tools([f'{tmp_path}/bad.py:f'], 1.0).results([Call('f', {})])


# ---------------------------------------------------------------------------------------------- turns
@dataclasses.dataclass
class Script:
  """A policy that says what a script has for the text of the prompt so far.

  said: (prompt, number of the sample) -> its words; where they end with '$' the answer ends by itself.
  """
  said: dict
  max_new_tokens: int = 200
  tokenizer = TOKENIZER

  def __post_init__(self):
    self.calls = []

  def answers(self, params, prompts, samples, sampling, key):
    self.calls.append((len(prompts), np.asarray(jax.random.key_data(key)).tolist()))
    return [self.answer(prompt, k) for prompt in prompts for k in range(samples)]

  def answer(self, prompt, k):
    so_far = bytes(i if i < 256 else ord('$') for i in prompt.ids).decode()
    words = self.said.get((so_far, k)) or self.said[so_far, 0]
    ids = [*words.removesuffix('$').encode(), *([END] if words.endswith('$') else [])][:self.max_new_tokens]
    ended = ids[-1] == END
    return Answer(prompt, tuple(ids), TOKENIZER.decode(ids[:-1] if ended else ids), ended,
                  tuple(-0.1 * (i % 7 + 1) for i in range(len(ids))))


ADD = '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>$'
PROMPT = Prompt('2+3=', tuple(b'2+3='), {'answer': 5}, '2+3=')
AFTER = f'2+3={ADD}5'


def ask(script, tools, turns=3, tool_tokens=50, prompts=(PROMPT,), samples=1):
  sampler = TurnSampler(script, tools, turns, tool_tokens, lambda text: tuple(TOKENIZER.encode(text)))
  return sampler.answers(None, prompts, samples, Sampling(1.0), jax.random.key(3))


def test_an_answer_goes_on_behind_a_call(tools):
  """The ids are those of all turns and of the result; the reward is of what is said last."""
  [answer] = ask(Script({('2+3=', 0): ADD, (AFTER, 0): '5$'}), tools)
  call = [*ADD[:-1].encode(), END]
  assert answer.ids == (*call, *b'5', *b'5', END)
  assert answer.text == '5' and answer.ended and answer.replies == ((len(call), len(call) + 1),)
  assert Rewards(Rollout((Exact(),))).score([answer]).tolist() == [[1.0]]
  assert answer.is_own.tolist() == [True] * len(call) + [False, True, True]
  assert [answer.log_probs[i] for i in (0, len(call), len(call) + 1)] == [-0.1, 0.0, -0.1]


def test_without_the_call_the_answer_is_wrong(tools):
  [answer] = ask(Script({('2+3=', 0): '6$'}), tools)
  assert answer.text == '6' and answer.replies == ()
  assert Rewards(Rollout((Exact(),))).score([answer]).tolist() == [[0.0]]


def test_only_those_that_call_go_on(tools):
  """Of the samples of all prompts; each draw of a later turn is another one."""
  other = Prompt('7=', tuple(b'7='), {}, '7=')
  script = Script({('2+3=', 0): '1$', ('2+3=', 1): ADD, ('7=', 0): '7$', ('7=', 1): f'{ADD[:-1]}', (AFTER, 0): ADD,
                   (f'{AFTER}{ADD}5', 0): 'ten$'})
  found = ask(script, tools, prompts=(PROMPT, other), samples=2)
  assert [answer.text for answer in found] == ['1', 'ten', '7', ADD[:-1]]
  assert [len(answer.replies) for answer in found] == [0, 2, 0, 0]  # the last one was cut off within its turn
  assert [count for count, _ in script.calls] == [2, 1, 1]
  assert len({str(key) for _, key in script.calls}) == 3


def test_turns_are_bounded(tools):
  forever = {('2+3=', 0): ADD, (AFTER, 0): ADD, (f'{AFTER}{ADD}5', 0): ADD}
  [answer] = ask(Script(forever), tools, turns=2)
  assert len(answer.replies) == 1 and answer.text == ADD[:-1]


def test_tokens_are_bounded(tools):
  """An answer with its turns and replies has at most max_new_tokens; results have at most tool_tokens."""
  call = len(ADD)
  cut = ask(Script({('2+3=', 0): ADD, (AFTER, 0): 'five, of course$'}, max_new_tokens=call + 5), tools)[0]
  assert len(cut.ids) == call + 5 and not cut.ended and cut.text == 'five'
  full = ask(Script({('2+3=', 0): ADD}, max_new_tokens=call + 1), tools)[0]
  assert len(full.ids) == call and full.replies == ()  # no room for a word behind the result
  long = '<tool_call>{"name": "long"}</tool_call>$'
  short = ask(Script({('2+3=', 0): long, (f'2+3={long}xxxx', 0): 'so$'}), tools, tool_tokens=4)[0]
  assert short.text == 'so' and short.replies == ((len(long), len(long) + 4),)


def test_few_numbers_of_rows_are_compiled():
  prompts = [dataclasses.replace(PROMPT, ids=(i,)) for i in range(5)]
  assert [prompt.ids[0] for prompt in filled(prompts)] == [0, 1, 2, 3, 4, 4, 4, 4]
  assert filled(prompts[:1]) == prompts[:1]


# ---------------------------------------------------------------------------------------------- what is learnt
def test_what_a_function_returned_is_not_learnt(tools):
  script = Script({('2+3=', 0): ADD, (AFTER, 0): '5$'})
  plain = Answer(PROMPT, (*b'6', END), '6', True, (-1.0, -2.0))
  answers = [*ask(script, tools), plain]
  buffer = RolloutBuffer.of(answers, 128, np.zeros((1, 2)))
  rows = np.arange(2)
  is_answer = buffer.is_answer(rows)
  for row, answer in enumerate(answers):
    targets = buffer.ids[row, 1:][is_answer[row]]
    assert targets.tolist() == np.array(answer.ids)[answer.is_own].tolist()
  again = RolloutBuffer.from_arrays(buffer.arrays())
  np.testing.assert_array_equal(again.is_answer(rows), is_answer)
  old = np.zeros((2, 128), np.float32)
  old[is_answer] = np.concatenate([answer.own_log_probs for answer in answers])
  assert mismatch_numbers(answers, old, is_answer)['sampler_mismatch_max'] == pytest.approx(0, abs=1e-6)
  numbers = answer_numbers(answers, 1)
  assert numbers['tool_replies'] == 0.5 and numbers['answer_length_max'] == len(ADD) + 2
  assert RolloutBuffer.of([plain], 128, np.zeros((1, 1))).own is None


# ---------------------------------------------------------------------------------------------- templates
@pytest.mark.parametrize('template', ['plain', 'llama2', 'llama3', 'chatml'])
def test_a_reply_is_what_the_template_writes(template, texts):
  """Behind the end of the call stands what a conversation with one more message has there."""
  from llm_jax.data.tokenizers import byte_level
  names = ('<|im_start|>', '<|im_end|>', '<s>', '</s>', '<|begin_of_text|>', '<|start_header_id|>', '<|end_header_id|>',
           '<|eot_id|>')
  tokenizer = byte_level.train(texts, 300, 'cl100k', special_tokens=names)
  question, call = {'role': 'user', 'content': 'What is 2+3?'}, {'role': 'assistant', 'content': ADD[:-1]}
  reply = {'role': 'user', 'content': '<tool_response>\n5\n</tool_response>'}
  whole = chat_templates.prompt_ids([question, call, reply], template, tokenizer).tolist()
  prompt = chat_templates.prompt_ids([question], template, tokenizer).tolist()
  end = chat_templates.end_of_turn(template, tokenizer)[0]
  said = [*prompt, *whole[len(prompt):whole.index(end, len(prompt)) + 1]]
  assert [*said, *chat_templates.reply_ids('5', template, tokenizer)] == whole


@pytest.fixture(scope='module')
def texts():
  return [pathlib.Path(chat_templates.__file__).read_text()]


def test_rollouts_that_are_refused():
  for fields, message in ((dict(tools=('add',), turns=2), r'tools\[0\] = .add.: name a file'),
                          (dict(tools=('a.py:f',)), 'turns = 1: use 2 or more'), (dict(turns=2), 'there are no tools')):
    with pytest.raises(ConfigError, match=message):
      Rollout((Exact(),), **fields)
