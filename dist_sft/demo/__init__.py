"""What `launchers/local` trains on: generated chats, a small model from random weights, a score of what it learned."""
