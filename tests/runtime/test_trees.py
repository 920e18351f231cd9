"""Trees of many files, compared with what `os.walk` finds."""
import os

import pytest

from llm_jax.runtime.trees import FEW, read_tree, remove_tree


@pytest.fixture
def folder(tmp_path):
  """More files and folders than are asked for one by one, links among them."""
  root = tmp_path / 'root'
  for i in range(FEW + 10):
    below = root / f'part_{i}' / 'd'
    below.mkdir(parents=True)
    (below / 'file').write_text(str(i))
  (root / 'empty').mkdir()
  kept = tmp_path / 'kept'
  kept.mkdir()
  (kept / 'inside').write_text('stays')
  (root / 'part_0' / 'link').symlink_to(kept)
  (root / 'broken').symlink_to(tmp_path / 'nowhere')
  return root


def test_all_files_are_found_and_links_are_files(folder):
  files, folders = [], []
  for place, inner, names in os.walk(folder):
    below = os.path.relpath(place, folder)
    paths = [os.path.normpath(f'{below}/{name}') for name in [*inner, *names]]
    links = [path for path in paths if (folder / path).is_symlink()]
    folders += [path for path in paths if (folder / path).is_dir() and path not in links]
    files += [path for path in paths if path not in folders]
  tree = read_tree(folder)
  assert tree.files == sorted(files) and len(files) == FEW + 12
  assert sorted(tree.folders) == sorted(folders)
  assert [level[0].count('/') for level in tree.levels[1:]] == [0, 1]


def test_all_is_removed_but_what_links_lead_to(folder):
  remove_tree(folder)
  assert not folder.exists()
  assert (folder.parent / 'kept' / 'inside').read_text() == 'stays'


def test_a_folder_that_is_not_there(tmp_path):
  with pytest.raises(FileNotFoundError):
    read_tree(tmp_path / 'none')
