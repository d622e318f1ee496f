"""Input and output formats: each public module here is one, found by its name."""
