"""Lets models answer the same prompts, two against each other, and rates them.

  python -m launch.arena --checkpoint=A --checkpoint=B --prompts=FILE --out=DIR      writes DIR/vote.html
  python -m launch.arena --votes=votes.jsonl --out=DIR                               rates them by a person's votes
  python -m launch.arena --checkpoint=A --checkpoint=B --prompts=FILE --out=DIR --judge=checks.py:verify
  python -m launch.arena --checkpoint=A --checkpoint=B --prompts=FILE --out=DIR --reward_model=C
  python -m launch.arena --checkpoint=A --checkpoint=B --prompts=FILE --out=DIR --judge_model=C --judge_template=FILE

The page vote.html shows answers without the models' names; open it, vote, download the votes. A judge is a function
(prompt, answer) -> number of a Python file, or a reward model: the larger number wins. Or it is a language model that
is asked which of two answers is better, in both orders. The ratings are printed, and written to DIR/ratings.json and
DIR/ratings.html.
"""
import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

from launch import runtime
from launch.arena_judges import add_flags, check_judge, judge_battles
from launch.errors import refusing
from launch.imported import run_folder
from launch.place_flags import local_path
from launch.sample_flags import SampleFlags
from launch.sample_flags import parse as parse_sample
from llm_jax.config.errors import require
from llm_jax.runtime.files import write_atomic
from llm_jax.tracking.run_config import read_config

BATTLES = 'battles.jsonl'


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog='python -m launch.arena', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add('--checkpoint', action='append', default=[], type=local_path, metavar='WORKDIR',
      help='a model, as of launch.sample; given twice or more')
  add('--prompts', type=local_path, metavar='FILE', help="a prompt a line, or JSON lines with a 'prompt'")
  add('--out', required=True, type=local_path, metavar='DIR', help='the folder of the arena')
  add_flags(parser)
  add('--votes', action='append', default=[], type=local_path, metavar='FILE',
      help='votes that were downloaded from the page; can be given more than once')
  add('--max_new_tokens', type=int, default=128, help='of an answer; default 128')
  add('--temperature', type=float, default=0.8, help='of the answers; default 0.8')
  add('--seed', type=int, default=0, help='of the answers, the sides and the intervals; default 0')
  return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
  """Refuses flags that do not go together."""
  if args.prompts is None:
    require(bool(args.votes), '--votes', None, 'give votes to rate by, or --prompts and models to let them answer')
    require(not args.checkpoint, '--checkpoint', str(args.checkpoint), 'only with --prompts')
    check_judge(args)
    return
  require(not args.votes, '--votes', str(args.votes), 'votes are about battles that are there already: leave out '
          '--prompts')
  names = [str(checkpoint) for checkpoint in args.checkpoint]
  require(len(set(names)) == len(names) >= 2, '--checkpoint', names, 'name two models or more, each once')
  require(args.max_new_tokens >= 1, '--max_new_tokens', args.max_new_tokens, 'use 1 or more')
  require(args.temperature >= 0, '--temperature', args.temperature, 'use 0 or more')
  check_judge(args)


def main(argv: Sequence[str] | None = None) -> int:
  args = parse(argv)
  with refusing():
    check(args)
    from llm_jax.arena import battles, page
    from llm_jax.runtime.errors import CheckpointError
    if args.prompts is None:
      known = battles.read_battles(args.out / BATTLES)
      votes = [vote for path in args.votes for vote in battles.read_votes(path, known)]
      rate(args, known, votes)
      return 0
    prompts = battles.read_prompts(args.prompts)
    judge = judge_battles(args)
    try:
      answers = {str(place): answer_all(args, place, prompts) for place in args.checkpoint}
    except CheckpointError as error:
      print(f'error: {error}', file=sys.stderr)
      return 1
    known = battles.make_battles(prompts, answers, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    battles.write_battles(args.out / BATTLES, known)
    write_atomic(args.out / 'vote.html', page.voting_page(known))
    print(args.out / 'vote.html')
    if judge is not None:
      votes = judge(known)
      battles.write_votes(args.out / 'votes.jsonl', votes)
      rate(args, known, votes)
  return 0


def rate(args: argparse.Namespace, known: Sequence, votes: Sequence) -> None:
  """Prints and writes the ratings."""
  from llm_jax.arena import battles, bradley_terry, page
  names, wins, ties = battles.tally(known, votes)
  ratings = bradley_terry.rate(names, wins, ties, seed=args.seed)
  elo = bradley_terry.online_elo(names, battles.results(known, votes))
  for row in [page.HEAD, *page.rating_rows(ratings)]:
    print('  '.join(f'{cell:>14}' if i else f'{cell:>3}' for i, cell in enumerate(row)))
  for sentence in page.not_distinguishable(ratings):
    print(sentence)
  values = {name: value.tolist() if hasattr(value, 'tolist') else value
            for name, value in dataclasses.asdict(ratings).items()}
  write_atomic(args.out / 'ratings.json', json.dumps({**values, 'online_elo': elo}, indent=1) + '\n')
  write_atomic(args.out / 'ratings.html', page.rating_page(ratings, elo))
  print(args.out / 'ratings.html')


def answer_all(args: argparse.Namespace, place: pathlib.Path, prompts: Sequence[str]) -> list[str]:
  """What one model says to every prompt, as launch.sample would."""
  workdir = run_folder('--checkpoint', place)
  run = read_config(workdir, '--checkpoint')
  runtime.prepare()
  from launch.sampler import Sampler
  sampler = Sampler(sample_flags(args, workdir), run, None)
  answers: list[str] = []
  for number, prompt in enumerate(prompts):
    if sampler.template is None:
      from llm_jax.data.tokenizers.base import opened
      tokens = [int(token) for token in opened(sampler.tokenizer, sampler.tokenizer.encode(prompt))]
    else:
      tokens = sampler.prompt_ids([{'role': 'user', 'content': prompt}])
    tokens, max_new_tokens = sampler.fit(tokens)
    new = [token for token in sampler.answer(tokens, max_new_tokens, 0, number) if token not in sampler.stop_tokens]
    answers.append(sampler.tokenizer.decode(new))
  return answers


def sample_flags(args: argparse.Namespace, workdir: pathlib.Path) -> SampleFlags:
  return parse_sample([f'--checkpoint={workdir}', '--prompt=-', f'--temperature={args.temperature}',
                       f'--seed={args.seed}', f'--max_new_tokens={args.max_new_tokens}'], '')


def cli() -> int:
  """The program `llm-jax-arena`."""
  return main()


if __name__ == '__main__':
  sys.exit(cli())
