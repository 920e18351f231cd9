"""The cards of an evaluation's page, for each kind of request."""
import pytest

from llm_jax.report.evaluation import sample_card


@pytest.mark.parametrize('arguments, choices', [
  ([['Q: a', ' b'], ['Q: a', ' c']], '[&quot; b&quot;, &quot; c&quot;]'), ([['a whole text']], ''),
  ([['Q: a', {'until': ['.']}]], '')])
def test_a_card_shows_the_choices_that_there_are(arguments, choices):
  sample = {'doc_id': 3, 'arguments': arguments, 'filtered_resps': [1.0], 'target': 'x', 'metrics': ['m'], 'm': 2}
  card = sample_card(sample)
  assert 'question 3: m 2' in card and arguments[0][0] in card
  assert ('choices' in card) == bool(choices) and choices in card
