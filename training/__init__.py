"""What every generator's training shares: processes, snapshots, checkpoints, events, pictures, cards."""
