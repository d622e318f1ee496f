"""Commands of the baselines: each public module here is one."""
