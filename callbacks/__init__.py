"""What is watched while the two phases train; one callback per file."""
