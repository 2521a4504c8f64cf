"""What commands computed, for a person at a terminal."""
