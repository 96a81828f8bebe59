"""How a run goes: the loop, its checkpoints, evaluation, logs and record."""
