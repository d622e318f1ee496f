"""Commands, one file each: `add_arguments(parser, words)` and `run(arguments)`; the docstring is the help."""
