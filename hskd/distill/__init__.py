"""Distillation: knowledge sources, losses, the trainers of the two stages, and the trial that they make."""
