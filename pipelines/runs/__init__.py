"""What a run leaves behind: checkpoints, logs, the way back after an interruption."""
