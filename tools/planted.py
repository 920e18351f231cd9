"""Writes what `experiments/prompting_miniature.py` learns from and is asked: rules that only examples tell, and facts
that only passages hold.

python -m tools.planted --out=planted

Rules: every text applies one rule to words, 'abcd>dcba'; which one, nothing but the lines before says. Facts: every
person has a code, 'bamo kelar: 482'; those of the persons that are asked for in the end are in no text
that is learnt from.

  rules.jsonl           texts to learn the rules from
  facts.jsonl           the facts of all persons, the passages of an index
  questions.jsonl       questions and answers to learn from
  test_questions.jsonl  those of other persons, with the fact as their evidence
  rule_NAME.jsonl       questions for the task rule_NAME, on words that are in no text
  *.yaml                the tasks, the group `rules` of those and the task `codes`, for `launch.evaluate --include_path`
"""
import argparse
import json
import pathlib
import random
import string
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

RULES: dict[str, Callable[[str], str]] = {
  'same': lambda word: word,
  'reverse': lambda word: word[::-1],
  'upper': str.upper,
  'rotate': lambda word: word[1:] + word[0],
}
LINES = 8  # of a text
NAMES = 60  # first names, and as many last ones
TASK = ('task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n'
        'fewshot_split: test\noutput_type: generate_until\ndoc_to_text: "{question}"\ndoc_to_target: "{{{{answer}}}}"\n'
        'target_delimiter: ""\nfewshot_delimiter: "\\n"\n'
        'generation_kwargs: {{until: ["\\n"], max_gen_toks: 8, do_sample: false}}\n'
        'filter_list:\n  - {{name: none, filter: [{{function: remove_whitespace}}, {{function: take_first}}]}}\n'
        'metric_list:\n  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}\n')
GROUP = ('group: rules\ntask: [{names}]\naggregate_metric_list:\n'
         '  - {{metric: exact_match, aggregation: mean, weight_by_size: true}}\n')


def write(folder: pathlib.Path, texts: int = 20_000, persons: int = 3_000, questions: int = 200,
          rules: Sequence[str] = tuple(RULES), letters: int = 4, digits: int = 3, seed: int = 0) -> None:
  """Makes the folder.

  texts: of rules.   persons: to learn from.   questions: of each task, and persons that are asked for in the end.
  rules: names of RULES.   letters: of a word.   digits: of a code.
  """
  folder.mkdir(parents=True, exist_ok=True)
  rng = random.Random(seed)
  write_rules(folder, texts, questions, rules, letters, rng)
  write_facts(folder, persons, questions, digits, rng)


# ---------------------------------------------------------------------------------------------- rules
def write_rules(folder: pathlib.Path, texts: int, questions: int, rules: Sequence[str], letters: int,
                rng: random.Random) -> None:
  def words(count: int, is_test: bool) -> list[str]:
    """A tenth of all words, by their checksums, is in no text; but single letters are."""
    found: list[str] = []
    while len(found) < count:
      word = ''.join(rng.choices(string.ascii_lowercase, k=letters))
      if letters == 1 or (zlib.crc32(word.encode()) % 10 == 0) == is_test:
        found.append(word)
    return found

  def text() -> str:
    rule = RULES[rng.choice(rules)]
    return ''.join(f'{word}>{rule(word)}\n' for word in words(LINES, False))

  for name in rules:
    rows = [{'question': word, 'answer': RULES[name](word)} for word in words(questions, True)]
    write_lines(folder / f'rule_{name}.jsonl', rows)
    write_task(folder, f'rule_{name}', f'rule_{name}', '{{question}}>')
  names = ', '.join(f'rule_{name}' for name in rules)
  (folder / 'rules.yaml').write_text(GROUP.format(names=names), encoding='utf-8')

  write_lines(folder / 'rules.jsonl', ({'text': text()} for _ in range(texts)))


# ---------------------------------------------------------------------------------------------- facts
def write_facts(folder: pathlib.Path, persons: int, questions: int, digits: int, rng: random.Random) -> None:
  first, last = (rng.sample([a + b + c + d for a in 'bdfgkl' for b in 'aeio' for c in 'mnrst' for d in 'aou'], NAMES)
                 for _ in range(2))
  names = rng.sample([f'{one} {other}' for one in first for other in last], persons + questions)
  codes = {name: f'{rng.randrange(10**digits):0{digits}}' for name in names}
  fact = lambda name: f'{name}: {codes[name]}'
  row = lambda name: {'question': f'{name}:', 'answer': codes[name], 'evidence': fact(name)}
  write_lines(folder / 'facts.jsonl', ({'text': fact(name)} for name in sorted(names)))
  write_lines(folder / 'questions.jsonl', map(row, names[:persons]))
  write_lines(folder / 'test_questions.jsonl', map(row, names[persons:]))
  write_task(folder, 'codes', 'test_questions', '{{question}}')


def write_lines(path: pathlib.Path, rows: Iterable[dict[str, Any]]) -> None:
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')


def write_task(folder: pathlib.Path, name: str, rows: str, question: str) -> None:
  definition = TASK.format(name=name, question=question, data=folder.absolute() / f'{rows}.jsonl')
  (folder / f'{name}.yaml').write_text(definition, encoding='utf-8')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--out', type=pathlib.Path, required=True, help='the folder to make')
  write(parser.parse_args().out)


if __name__ == '__main__':
  main()
