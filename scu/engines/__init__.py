"""Training engines: the only package that imports a training framework."""
