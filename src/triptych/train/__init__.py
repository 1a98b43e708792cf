"""The loop and what it needs: optimizer, checkpoints, processes, the run directory."""
