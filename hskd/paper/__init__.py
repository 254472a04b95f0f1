"""Departures of the paper's released code from this project. Each can be switched on by name."""
