"""The commands, in the order of the data: embed, cluster, bound, train, generate, evaluate; and their helpers."""

import os

# Before PyTorch starts its threads. Waiting OpenMP threads spin for long by default: on a machine that other programs
# use too, they starve the very thread that they wait for, and training is ten times slower.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
