"""Foundation models that are fine-tuned: each public module here is an approach, found by its name."""
