"""Commands, Python API, launcher and sweeps: everything a user of flexq-ft touches."""
