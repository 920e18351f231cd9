"""Five kinds of tasks as files of YAML, and questions for them."""
import json
import random

METRICS = 'metric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n'
NORMED = METRICS + '  - {metric: acc_norm, aggregation: mean, higher_is_better: true}\n'
TASKS = {
  'choices': 'output_type: multiple_choice\ndoc_to_text: "Q: {{question}}\\nA:"\ndoc_to_choice: "{{choices}}"\n'
             'doc_to_target: "{{answer}}"\n' + NORMED,
  'letters': 'output_type: multiple_choice\ndoc_to_text: "Q: {{question}}\\n'
             'A. {{choices[0]}}\\nB. {{choices[1]}}\\nC. {{choices[2]}}\\nAnswer:"\n'
             'doc_to_choice: ["A", "B", "C"]\ndoc_to_target: "{{answer}}"\n' + METRICS,
  'last_word': 'output_type: loglikelihood\ndoc_to_text: "{{text.rsplit(\' \', 1)[0]}}"\n'
               'doc_to_target: "{{\' \' + text.rsplit(\' \', 1)[1]}}"\ntarget_delimiter: ""\nmetric_list:\n'
               '  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}\n'
               '  - {metric: acc, aggregation: mean, higher_is_better: true}\n',
  'rolling': 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"\nmetric_list:\n'
             '  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}\n',
  'written': 'output_type: generate_until\ndoc_to_text: "Q: {{question}}\\nA:"\n'
             'doc_to_target: "{{choices[answer]}}"\ngeneration_kwargs: {until: ["\\n", "e"], max_gen_toks: 20}\n'
             'metric_list:\n  - {metric: exact_match, aggregation: mean, higher_is_better: true}\n',
}
WORDS = 'river stone house light green winter paper garden music window bread ocean'.split()


def rows(count=8, seed=0):
  draw = random.Random(seed)
  found = []
  for i in range(count):
    sentence = lambda n: ' '.join(draw.choices(WORDS, k=n))
    found.append({'question': f'{sentence(2)}?', 'choices': [sentence(1), sentence(2), sentence(1) + '!'],
                  'answer': draw.randrange(3), 'text': sentence(6 if i % 4 else 90), 'passage': i // 2})
  return found


def write(folder):
  """The tasks' files and `rows.jsonl` in a folder."""
  for name, definition in TASKS.items():
    (folder / f'{name}.yaml').write_text(f'task: {name}\n{definition}')
  (folder / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows()))
  return folder
