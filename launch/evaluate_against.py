"""The same model through lm-evaluation-harness's own `hf` backend, as a check of ours."""
import pathlib
import tempfile
from typing import Any

from launch.convert_source import read_run
from launch.convert_target import write_hf
from launch.evaluate_model import Opened
from llm_jax.harness.run import quiet, run

SHARD_GB = 5.0


def evaluate_hf(opened: Opened) -> dict[str, Any]:
  """The results of the exported model, on the same questions."""
  from lm_eval.models.huggingface import HFLM
  saved = opened.saved
  has_adapters = saved.stage.adapters is not None
  model = read_run(saved.workdir, saved.stage.name, saved.checkpoint.step, merge=has_adapters)
  is_conversation = opened.text.template is not None
  with tempfile.TemporaryDirectory() as parent, quiet():
    folder = pathlib.Path(parent) / 'model'
    write_hf(folder, model, 'float32', SHARD_GB)
    # A conversation has no beginning but its template's; else the exported tokenizer puts there what was learnt.
    begins = None if opened.text.begins and not is_conversation else False
    make: Any = HFLM  # whose signature a decorator hides
    backend = make(str(folder), device='cpu', dtype='float32', batch_size=opened.flags.batch_size,
                   max_length=opened.text.max_length, add_bos_token=begins)
    return run(backend, opened.prepared, opened.asking, with_template=is_conversation)
