"""Models and tasks of lm-evaluation-harness."""
import os

os.environ.setdefault('TQDM_DISABLE', '1')  # the harness draws a bar for every task; tqdm asks when it is imported
