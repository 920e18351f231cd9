"""What is learnt; `llm_jax/objectives/` computes it."""
import dataclasses


@dataclasses.dataclass(frozen=True)
class LanguageModel:
  """Next-token cross-entropy, plus z_loss x logsumexp^2 (PaLM, section 5: 1e-4)."""
  z_loss: float = 0.0


Objective = LanguageModel
