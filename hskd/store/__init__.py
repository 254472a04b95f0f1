"""The store: a teacher's selected hidden-state knowledge and prediction targets on disk, addressed by example id."""
