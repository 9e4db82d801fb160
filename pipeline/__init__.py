"""The commands, in the order in which the data moves: embed, cluster, train, generate."""
