"""What `dist-sft check` proves, on the user's own model, template, data and settings."""
