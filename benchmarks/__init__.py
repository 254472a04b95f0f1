"""Benchmarks of training, extraction and stores (``hskd bench``), with random weights and no data or network."""
