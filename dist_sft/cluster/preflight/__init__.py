"""What must be true of every node before GPUs are held for long.

nodes of a Ray cluster ─ a task on each (look) ─> NodeFacts ─ pure rules (judge) ─> Finding: what, where, how to mend it
"""
