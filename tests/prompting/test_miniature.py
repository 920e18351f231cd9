"""What examples and passages in the prompt are worth to a model that has learnt to read them: in small what
`experiments/prompting_miniature.py` shows."""
import json

import pytest

from llm_jax.config.data import Data, Weighted
from llm_jax.config.experiment import Bytes, Jsonl, LinearToZero, Muon, RetrievedAnswers, presets
from llm_jax.config.run import Run
from llm_jax.config.stage import Stage
from llm_jax.data.tokenizers.byte_level import ByteTokenizer
from llm_jax.harness.model import HarnessModel, Reader
from llm_jax.harness.statistics import difference
from llm_jax.harness.text import HarnessText
from llm_jax.modules.execution import Execution
from llm_jax.prompting.answerer import HarnessAnswerer
from llm_jax.prompting.few_shot import Layout, choose
from llm_jax.prompting.program import Exemplar, run_together
from llm_jax.prompting.retrieval import Question, likelihoods
from llm_jax.retrieve.bm25 import BM25
from llm_jax.retrieve.index import Index, save
from llm_jax.retrieve.passages import Passage
from tools import planted
from tools.training import Training

RULES = ('same', 'upper')
LINES = Layout('{}>', '', '\n')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  made = tmp_path_factory.mktemp('planted')
  planted.write(made, texts=2_000, persons=2_000, questions=40, rules=RULES, letters=2, digits=1)
  return made


def rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def learn(source, steps, length, batch_size=32, width=32):
  """A model that has read the texts of a source, as something that answers."""
  stage = Stage('learn', Data((Weighted(source),), packing='best_fit'), steps, length, batch_size,
                LinearToZero(8e-3, warmup=10), optimizer=Muon())
  model = presets.llama(d_model=width, num_layers=2, num_heads=4, vocab_size=257, tied_head=True, rope_theta=100.0)
  for step in Training(Run(model, (stage,), Bytes()), stage).steps(steps):
    params = step.state.params if step.number == steps else None
  text = HarnessText(ByteTokenizer(), None, True, 257, 256)
  reader = Reader(model, params, Execution(unroll=False, kernels='xla'), (256,), batch_size=64)
  return HarnessAnswerer(HarnessModel(text, reader), lambda prompt, answer: len(text.encode_pair(prompt, answer)[1]))


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
  monkeypatch.setenv('LLM_JAX_CACHE', str(tmp_path))


def test_examples_beat_none_on_planted_rules(folder):
  """Which of two rules a word stands under, the lines before say."""
  answerer = learn(Jsonl(f'{folder}/rules.jsonl', val_fraction=0.0), steps=100, length=50)
  asked = [(row['question'], row['answer'], name) for name in RULES for row in rows(folder / f'rule_{name}.jsonl')[4:]]
  shown = {name: [Exemplar(row['question'], row['answer']) for row in rows(folder / f'rule_{name}.jsonl')[:4]]
           for name in RULES}
  right = {}
  for shots in (0, 4):
    programs = [choose(question, (question, question.upper()), shown[name][:shots], layout=LINES)
                for question, _, name in asked]
    chosen = run_together(programs, answerer)
    right[shots] = [float((question, question.upper())[place] == answer)
                    for place, (question, answer, _) in zip(chosen, asked, strict=True)]
  found = difference(right[0], right[4])
  assert found.in_words.startswith('better') and found.estimate.interval[0] > 0.2, found.in_words
  assert 0.4 <= sum(right[0]) / len(asked) <= 0.6  # nothing but chance without them


@pytest.mark.slow
def test_passages_beat_none_on_planted_facts(folder, tmp_path):
  """Of persons that the model has never read of."""
  facts = [row['text'] for row in rows(folder / 'facts.jsonl')]
  save(tmp_path / 'index', Index(tuple(Passage('facts', i, text) for i, text in enumerate(facts)), 'facts'))
  source = RetrievedAnswers(f'{folder}/questions.jsonl', f'{tmp_path}/index', template=None, val_fraction=0.0)
  answerer = learn(source, steps=200, length=36, batch_size=64, width=64)
  questions = [Question(row['question'], row['answer'], {facts.index(row['evidence'])})
               for row in rows(folder / 'test_questions.jsonl')]
  found = BM25(facts).search_all([question.question for question in questions], 1)
  by_prompt = {one.prompt: one for one in likelihoods(answerer, questions, facts, found, str)}
  assert by_prompt['retrieved'].gain.estimate.interval[0] > 1, by_prompt
  assert by_prompt['gold'].estimate.mean > by_prompt['random'].estimate.mean + 1
