"""Questions and answers out of source code: bodies are the real ones, spoilt ones differ, splits do not meet."""
import ast
import pathlib
import textwrap

import pytest

from llm_jax.batch import LanguageModelBatch, PreferenceBatch
from llm_jax.config import experiment as config
from llm_jax.data import dataset, fingerprints
from llm_jax.data.sources import documents, standard_library
from llm_jax.data.tokenizers import byte_level

SOURCE = '''
"""A module."""
import os


class Tree:
    @property
    async def height(self, *, deep: bool = True):
        """How high it is.  And more
        of it.

        Not this.
        """
        # a comment is part of it

        if deep:
            return 1 + max(child.height for child in self.children)
        return 0

    def undocumented(self):
        return 1

    def only_documented(self):
        """Nothing else."""

    def margin(self):
        """Holds a text that hangs out."""
        return """
out
"""


def outer(a,
          b):
    """One line of
    two"""
    def inner():
        """Return b."""
        return b
    return inner() + a


def outer(a,
          b):
    """One line of two"""
    return 'the same question again'


def one(): """Line."""; return 1
def fence():
    """Hold a fence."""
    return '```'
def long():
    """Is too long."""
''' + '    print(1)\n' * 40


@pytest.fixture(scope='module')
def tiny(tmp_path_factory) -> dict[str, pathlib.Path]:
  folder = tmp_path_factory.mktemp('library')
  texts = {'a.py': SOURCE, 'broken.py': 'def f(:\n', 'latin.py': b'# \xe9\n'}
  for name, text in texts.items():
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
  return {name: folder / name for name in texts}


@pytest.fixture(scope='module')
def some(tmp_path_factory) -> dict[str, pathlib.Path]:
  """Part of the standard library."""
  found = standard_library.source_files()
  return {name: path for name, path in found.items() if '/' not in name and name[0] in 'abcdefgh'}


def test_functions_are_cut_out_of_their_files(tiny):
  assert [function[1:] for function in standard_library.functions(tiny)] == [
    ('async def height(self, *, deep: bool = True):\n    """How high it is."""',
     '    # a comment is part of it\n\n    if deep:\n'
     '        return 1 + max(child.height for child in self.children)\n    return 0'),
    ('def outer(a,\n          b):\n    """One line of two"""',
     '    def inner():\n        """Return b."""\n        return b\n    return inner() + a'),
    ('def inner():\n    """Return b."""', '    return b'),
  ]


def test_real_bodies_are_the_library_s_own(some):
  found = standard_library.functions(some)
  assert len(found) > 300 and len({function.question for function in found}) == len(found)
  statements = {name: {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text('utf-8'))) if isinstance(
    node, ast.FunctionDef | ast.AsyncFunctionDef) for node in node.body} for name, path in some.items()}
  for function in found:
    code = textwrap.dedent(function.code)
    assert standard_library.parses(code)
    assert standard_library.code_in(standard_library.fenced(function.code)) == function.code
    [whole] = ast.parse(f'{function.question}\n{function.code}').body
    assert {ast.unparse(node) for node in whole.body[1:]} <= statements[function.file]


def test_worse_answers_differ_and_come_out_the_same_again(some):
  rows = list(standard_library.preferences(some))
  standard_library._functions.cache_clear()
  assert rows == list(standard_library.preferences(some))
  assert [(file, row['prompt'], row['chosen']) for file, row in rows] == [
    (file, *(message['content'] for message in messages)) for file, messages in standard_library.conversations(some)]
  spoilt = [standard_library.code_in(row['rejected']) for _, row in rows]
  assert all(code is not None and code.strip() for code in spoilt)
  assert all(row['rejected'] != row['chosen'] for _, row in rows)
  assert 0.1 < sum(not standard_library.parses(code) for code in spoilt) / len(spoilt) < 0.6
  assert all(standard_library.worse(str(i), code, [code]).strip() not in ('', code.strip())
             for code in ('    pass', '    return', '    x') for i in range(20))


def test_a_rated_answer_is_one_of_the_two_that_preferences_compare(some):
  rated = list(standard_library.rated_answers(some))
  pairs = list(standard_library.preferences(some))
  assert rated == list(standard_library.rated_answers(some))
  assert [(file, row['prompt']) for file, row in rated] == [(file, row['prompt']) for file, row in pairs]
  for (_, row), (_, pair) in zip(rated, pairs, strict=True):
    assert row['completion'] == pair['chosen' if row['label'] else 'rejected']
  assert 0.4 < sum(row['label'] for _, row in rated) / len(rated) < 0.6


def test_the_format_is_exact():
  assert standard_library.code_in('```python\n    return 1\n```') == '    return 1'
  for answer in ('return 1', '```\nreturn 1\n```', 'Here:\n```python\nreturn 1\n```', '```python\nreturn 1',
                 '```python\na\n```\n```python\nb\n```'):
    assert standard_library.code_in(answer) is None
  assert standard_library.parses('    if a:\n        return b\n    return c')
  for code in ('', '    # nothing', '    if a:\n    b', 'return (', 'a\n  b', '\0'):
    assert not standard_library.parses(code)


def test_splits_are_those_of_the_files(some, tmp_path, monkeypatch):
  monkeypatch.setattr(standard_library, 'source_files', lambda: some)
  kinds = (config.StandardLibraryChats, config.StandardLibraryPreferences, config.StandardLibraryRatedAnswers)
  dialogue_of = (lambda document: document, lambda document: document.chosen, lambda document: document.dialogue)
  questions = {}
  for kind, dialogue in zip(kinds, dialogue_of, strict=True):
    source = documents.open_source(kind(val_fraction=0.2), tmp_path)
    for split in ('train', 'validation'):
      read = list(source.documents(split))
      assert all((fingerprints.unit_interval(file) < 0.2) == (split == 'validation') for file, _ in read)
      questions[kind, split] = {dialogue(document).messages[0]['content'] for _, document in read}
  for kind in kinds:
    assert len(questions[kind, 'validation']) > 10 and not questions[kind, 'train'] & questions[kind, 'validation']
    assert questions[kind, 'validation'] == questions[kinds[0], 'validation']
  before = [documents.open_source(kind(), tmp_path).fingerprint for kind in kinds]
  monkeypatch.setattr(standard_library, 'FORMAT', standard_library.FORMAT + 1)
  assert len({*before, *(documents.open_source(kind(), tmp_path).fingerprint for kind in kinds)}) == 6


def test_rows_and_questions(some, tmp_path, monkeypatch):
  monkeypatch.setattr(standard_library, 'source_files', lambda: some)
  found, tokenizer = standard_library.functions(some), byte_level.ByteTokenizer()
  open_data = lambda source, split: dataset.open_dataset(
    config.Data((config.Weighted(source),)), tokenizer, seq_len=700, seed=0, split=split, cache_dir=tmp_path)
  pairs = open_data(config.StandardLibraryPreferences('plain', val_fraction=0.2), 'train')
  assert isinstance(pairs.to_batch(pairs.padding), PreferenceBatch)
  data = open_data(config.StandardLibraryChats('plain', val_fraction=0.2), 'validation')
  assert isinstance(data.to_batch(data.padding), LanguageModelBatch)
  validation = {function.question: function.code for function in found
              if fingerprints.unit_interval(function.file) < 0.2}
  everything = data.questions(10_000, 10_000)
  assert len(everything) == len(validation) == data.num_documents
  for prompt, answer in everything:
    question = tokenizer.decode(prompt[1:]).removeprefix('User: ').removesuffix('\n\nAssistant:')
    assert tokenizer.decode(answer[:-1]) == ' ' + standard_library.fenced(validation[question])
    assert prompt[0] == answer[-1] == tokenizer.eot
  few = data.questions(5, 120)
  assert len(few) == 5 and all(len(prompt) <= 120 and (prompt, answer) in everything for prompt, answer in few)
