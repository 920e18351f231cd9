"""A small model that learns from a larger one (Hinton et al. 2015; Gemma 2, section 3), beside the same small model
that learns from the text alone, on as many tokens.

python -m launch.train --config=experiments/distill_small.py:teacher --workdir=runs/distill_small/teacher
python -m launch.train --config=experiments/distill_small.py:student --workdir=runs/distill_small/student
python -m launch.train --config=experiments/distill_small.py:alone --workdir=runs/distill_small/alone
python -m launch.report runs/distill_small/student runs/distill_small/alone

Two others learn from 12 ids that the teacher draws at every target: `sampled`, anew at every step, and `kept`, once,
before the first step (`--config.stages[0].objective.teacher.teacher.workdir=DIR` names its teacher).

All of them read the running interpreter's standard library. The student finds its teacher in the folder that the first
command names; `--config.stages[0].objective.teacher.workdir=DIR` names another. `--config.seed=1` draws other
parameters and another order of the text. What counts is `bits_per_byte` on the text set aside: 2.124 alone, 1.931 from
the teacher, which has 1.593 itself, 1.954 from `sampled` and 1.957 from `kept` ids (seed 0).
"""
from llm_jax.config.experiment import (
  BPE,
  Baselines,
  Checkpoints,
  Cosine,
  Distillation,
  HeldOut,
  LanguageModel,
  SavedRun,
  StandardLibrary,
  TeacherIds,
  experiment,
  presets,
  stage,
)

TEACHER = 'runs/distill_small/teacher'
VOCAB_SIZE = 1_024
LARGE = presets.llama(d_model=192, num_layers=4, num_heads=4, num_kv_heads=2, d_ff=512, vocab_size=VOCAB_SIZE,
                      tied_head=True)
SMALL = presets.llama(d_model=64, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=192, vocab_size=VOCAB_SIZE,
                      tied_head=True)
OBJECTIVES = {
  'teacher': LanguageModel(),
  'student': Distillation(SavedRun(TEACHER)),
  'sampled': Distillation(SavedRun(TEACHER), sampled=12),
  'kept': Distillation(TeacherIds(SavedRun(TEACHER), count=12)),
  'alone': LanguageModel(),
}


def get_config(role):
  is_teacher = role == 'teacher'
  return experiment(
    seed=0,
    tokenizer=BPE(vocab_size=VOCAB_SIZE),
    model=LARGE if is_teacher else SMALL,
    checkpoints=Checkpoints(every=500),
    stages=(
      stage('teacher' if is_teacher else 'student', StandardLibrary(val_fraction=0.02), seq_len=128, batch_size=16,
            steps=800 if is_teacher else 400, learning_rate=Cosine(peak=3e-3, warmup=20), objective=OBJECTIVES[role],
            evals=(HeldOut(every=200, batches=16), Baselines())),
    ),
  )
