"""Distillation: knowledge sources, losses, and the trainers of the two stages."""
