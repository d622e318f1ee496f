"""Commands of evaluation, one file each, as in `maskbridge.commands`."""
