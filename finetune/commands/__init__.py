"""Commands of the foundation models: each public module here is one."""
