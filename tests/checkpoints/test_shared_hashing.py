"""Files are divided among processes; tests/runtime/test_processes.py has two of them that hash."""
from llm_jax.checkpoints.shared_hashing import split


def test_shares_are_of_about_the_same_size():
  sizes = {f'state/{i}': 100 + i for i in range(1_000)}
  shares = split(sizes, 7)
  assert sorted(name for share in shares for name in share) == sorted(sizes)
  loads = [sum(sizes[name] for name in share) for share in shares]
  assert max(loads) - min(loads) <= max(sizes.values())


def test_a_process_reads_what_it_wrote():
  sizes = {f'state/ocdbt.process_{rank}/d/{i}': 10 for rank in range(4) for i in range(3)} | {'state/manifest': 1}
  shares = split(sizes, 4)
  assert all(sum(f'process_{rank}/' in name for name in share) == 3 for rank, share in enumerate(shares))


def test_fewer_processes_read_what_more_wrote():
  sizes = {f'state/ocdbt.process_{rank}/d/0': 10 for rank in range(4)}
  assert [len(share) for share in split(sizes, 2)] == [2, 2]
