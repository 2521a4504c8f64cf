"""What a step holds: sources, order, packing, ledger. numpy; no torch, no Ray."""
