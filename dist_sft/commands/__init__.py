"""What the commands do that are not training: look before it, take its result after it."""
