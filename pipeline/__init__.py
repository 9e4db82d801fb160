"""The commands, in the order in which the data moves: embed, cluster, train, generate."""

import os

# Before PyTorch starts its threads: threads that wait spin by default, and on a shared machine starve one another.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
