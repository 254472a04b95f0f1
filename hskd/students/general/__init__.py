"""General distillation: a narrow student from a teacher's body and unlabelled text."""
