"""Rewards of code, on answers whose values are counted by hand, and on the standard library's own functions."""
import random

import numpy as np
import pytest

from llm_jax.config.code_rewards import (
  ArgumentsUsed,
  LengthNear,
  NamesDefined,
  PromptWords,
  PythonBlock,
  UniqueToPrompt,
)
from llm_jax.config.errors import ConfigError
from llm_jax.config.experiment import StandardLibraryChats, StandardLibraryPrompts, mix
from llm_jax.data.prompts import Prompt, open_prompts
from llm_jax.data.sources import standard_library
from llm_jax.data.tokenizers.byte_level import train as train_tokenizer
from llm_jax.rollout.code_rewards import code_scorer, names, words
from llm_jax.rollout.sampling import Answer

QUESTION = 'def count_lines(self, path, *, skip=None):\n    """Return how many lines the file has."""'
REFERENCE = '    with open(path) as file:\n        return sum(1 for line in file if line != skip)'


def answer(code, question=QUESTION, reference=REFERENCE, ended=True, fenced=True):
  columns = {'answer': standard_library.fenced(reference)}
  text = standard_library.fenced(code) if fenced else code
  return Answer(Prompt(question, (1,), columns), (2,), text, ended, (-1.0,))


def score(reward, code, **kwargs):
  [found] = code_scorer(reward)([answer(code, **kwargs)])
  return found


@pytest.mark.parametrize('reward', [PythonBlock(), NamesDefined(), ArgumentsUsed(), LengthNear(), PromptWords()])
def test_only_answers_in_form_score(reward):
  assert score(reward, REFERENCE) > 0
  assert score(reward, REFERENCE, ended=False) == 0
  assert score(reward, REFERENCE, fenced=False) == 0
  assert score(reward, '    return (') == 0


def test_each_kind():
  assert score(PythonBlock(), '    return 1') == 1
  assert score(NamesDefined(), '    size = len(path)\n    return size + other') == 3 / 4  # len, path, size
  assert score(NamesDefined(), '    return 1') == 1
  assert score(ArgumentsUsed(), '    return path, skip') == 2 / 3
  assert score(ArgumentsUsed(), '    return 1', question='def f():\n    """Nothing."""') == 1
  assert score(LengthNear(), REFERENCE) == 1
  half = '    ' + 'x' * (len(REFERENCE.strip()) // 2)
  assert score(LengthNear(), half) == pytest.approx(0.5, abs=0.1)
  assert score(PromptWords(enough=2), '    return self.lines') == 0.5  # of count, lines, many and file
  assert score(PromptWords(enough=2), '    return self.line_file.countLines()') == 1
  assert score(PromptWords(enough=2), '    return self.path') == 0  # an argument


def test_what_answers_two_prompts_is_unique_to_none():
  other = QUESTION.replace('count_lines', 'last_line')
  given = [answer('    return self'), answer('    return self', other), answer('    return path'),
           answer('    return path'), answer('    return path', ended=False), answer('    return skip', other)]
  assert code_scorer(UniqueToPrompt())(given) == [0, 0, 1, 1, 0, 1]


def test_names_and_words():
  code = 'import os.path as p\nfor i in range(3):\n  x = [j for j in y]\ntry:\n  pass\nexcept Error as e:\n  e.f = p'
  assert names(code) == ({'range', 'j', 'y', 'Error', 'e', 'p'}, {'p', 'i', 'x', 'j', 'e'})
  assert words('read_HTTPHeader linesOfText if') == {'read', 'http', 'header', 'lines', 'text'}


def test_the_library_answers_itself_better_than_other_functions_do():
  functions = standard_library.functions(standard_library.source_files())[:400]
  rng = random.Random(0)
  rewards = [NamesDefined(), ArgumentsUsed(), LengthNear(), PromptWords()]
  own, other = ([[score(reward, code, question=each.question, reference=each.code) for reward in rewards]
                 for each, code in zip(functions, codes, strict=True)]
                for codes in ([each.code for each in functions], [rng.choice(functions).code for _ in functions]))
  better = np.mean(own, 0) - np.mean(other, 0)
  assert (better > 0.2).all(), better
  assert np.mean(own, 0)[[0, 2]].tolist() == [1, 1]


def test_prompts_of_the_library_are_the_questions_of_its_chats():
  tokenizer = train_tokenizer(['def f(x): return x'] * 9, 300, 'llama3', special_tokens=('<|im_start|>', '<|im_end|>'))
  chats = StandardLibraryChats(val_fraction=0.05)
  for split in ('train', 'validation'):
    found = open_prompts(mix(StandardLibraryPrompts(val_fraction=0.05)), tokenizer, split, seed=0, longest=1_000)
    prompt = found.first(1)[0]
    assert prompt.text.lstrip().startswith(('def ', 'async def ', '@'))
    assert standard_library.code_in(prompt.columns['answer'])
    text = tokenizer.decode(prompt.ids)
    assert text.startswith('<|im_start|>user\n') and text.endswith('<|im_start|>assistant\n')
  assert found.stop_tokens and chats.template == 'chatml'


def test_what_cannot_be_scored_is_named():
  with pytest.raises(ValueError, match="'Hello' is not the beginning of one function"):
    score(ArgumentsUsed(), '    return 1', question='Hello')
  with pytest.raises(ValueError, match="has no block of Python under 'other'"):
    score(LengthNear('other'), '    return 1')
  with pytest.raises(ConfigError, match='enough = 0: use 1 or more'):
    PromptWords(enough=0)
