"""Critique and revision: what the model is asked, in which order, and what becomes of answers that are cut off."""
import numpy as np
import pytest

from llm_jax.config.errors import ConfigError
from llm_jax.config.revisions import Principle
from llm_jax.rollout.revising import Said, revise

POLITE = Principle(critique='Is it rude?', revision='Make it polite.')
SHORT = Principle(revision='Make it short.')
PRINCIPLES = (POLITE, SHORT)


def user(text):
  return {'role': 'user', 'content': text}


def assistant(text):
  return {'role': 'assistant', 'content': text}


class Model:
  """Says what it is told to, and notes what it was asked."""

  def __init__(self, *turns):
    self.turns = list(turns)
    self.asked = []

  def __call__(self, conversations, number):
    self.asked.append((number, [list(conversation) for conversation in conversations]))
    said = self.turns.pop(0)
    assert len(said) == len(conversations)
    return said


def test_what_is_asked():
  """Bai et al. 2022, section 3.1: prompt, answer, critique request, critique, revision request; then again, with the
  revision in the place of the answer. A principle without a critique goes straight to the revision."""
  prompts = [[user('a?')], [{'role': 'system', 'content': 's'}, user('b?')]]
  model = Model([Said('It is.', True)], [Said('a, please', True), Said('b', True)],
                [Said('A bit.', True)], [Said('a', True), Said('dear b', True)])
  found = revise(PRINCIPLES, prompts, [Said('a!', True), Said('bbb!', True)], np.array([[0, 1], [1, 0]]), model)
  assert model.asked == [
    (0, [[user('a?'), assistant('a!'), user('Is it rude?')]]),
    (1, [[user('a?'), assistant('a!'), user('Is it rude?'), assistant('It is.'), user('Make it polite.')],
         [*prompts[1], assistant('bbb!'), user('Make it short.')]]),
    (2, [[*prompts[1], assistant('b'), user('Is it rude?')]]),
    (3, [[user('a?'), assistant('a, please'), user('Make it short.')],
         [*prompts[1], assistant('b'), user('Is it rude?'), assistant('A bit.'), user('Make it polite.')]]),
  ]
  assert [[revision.revised.text for revision in revisions] for revisions in found] == [
    ['a, please', 'a'], ['b', 'dear b']]
  assert [[revision.principle for revision in revisions] for revisions in found] == [[0, 1], [1, 0]]
  assert found[0][1].critique is None and found[0][0].critique == Said('It is.', True)


def test_what_is_cut_off_takes_no_place():
  """An answer that was cut off is not revised; a critique that was asks for no revision; a revision that was, or says
  nothing, leaves the answer before."""
  prompts = [[user('a?')], [user('b?')], [user('c?')]]
  model = Model([Said('It', False), Said('It is.', True)], [Said('b, pl', False)],
                [Said('It is.', True), Said('It is.', True)], [Said('a, please', True), Said(' ', True)])
  answers = [Said('a!', True), Said('b!', True), Said('c', False)]
  found = revise((POLITE,), prompts, answers, np.zeros((2, 3), int), model)
  kept = [[revision.is_kept for revision in revisions] for revisions in found]
  assert kept == [[False, True], [False, False], []]
  assert found[0][0].revised is None
  assert model.asked[2][1] == [[user('a?'), assistant('a!'), user('Is it rude?')],
                               [user('b?'), assistant('b!'), user('Is it rude?')]]


@pytest.mark.parametrize('make, message', [
  (lambda: Principle(revision=' '), 'revision = .*: write what asks for a revision'),
  (lambda: Principle('again', critique=''), 'critique = .*: write what asks for a critique, or None'),
])
def test_refused(make, message):
  with pytest.raises(ConfigError, match=message):
    make()
