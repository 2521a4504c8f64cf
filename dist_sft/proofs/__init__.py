"""What is proved before training, on the user's own model, template and data, in one process."""
