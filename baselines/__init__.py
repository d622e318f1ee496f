"""Image-level anomaly-detection baselines: each public module here is an approach, found by its name."""
