"""Checkpoints that are whole and verified, or not there; and exports that other libraries load."""
