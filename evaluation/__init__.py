"""Scores runs on a dataset: metrics with intervals, and the leaderboard. Knows predictions, never a model."""
