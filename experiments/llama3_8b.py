"""Llama 3 8B (Dubey et al. 2024), stage by stage, as `llama3_405b.py` has it.

python -m launch.train --config=experiments/llama3_8b.py:FOLDER --workdir=runs/llama3_8b

FOLDER holds what `llama3_405b.py` asks for.

Published: the architecture and peak learning rate (table 3); that the recipe is similar to 405B's (section 3.4). Chosen
here: that it is the same, the rates before alignment in proportion to the peak, those of alignment as the paper has
them for its largest models; and the mesh: 16 devices hold the model once, and 8 such groups share a sequence, so that
one of 131,072 tokens fits.
"""
from experiments.llama3_405b import recipe
from llm_jax.config.experiment import Mesh, presets


def get_config(folder):
  return recipe(folder, presets.llama3_1_8b(), peak=3e-4, mesh=Mesh(data=-1, fsdp=16, context=8))
