"""A row becomes a conversation, a conversation becomes tokens and loss weights. No torch, no Ray."""
