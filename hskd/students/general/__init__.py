"""General distillation: a narrow student learns a teacher's body on unlabelled text."""
